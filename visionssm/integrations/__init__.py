"""Adapters to other frameworks, one file each, imported only by who asks for it."""
