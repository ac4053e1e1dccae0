"""Training and evaluation on top of accelerate: recipes, checkpoints that resume bit for bit, logs and plots."""
