"""Experiments over several seeds, their statistics and reports."""
