"""Data and a budget -> the Arch to train."""
