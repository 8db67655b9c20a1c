"""The trainer, its state, run folders, checkpoints and devices."""
