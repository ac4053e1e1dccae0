"""Data sets, augmentation and the embedded demo data."""
