"""Weights learn: the trainer, its state and checkpoints, devices."""
