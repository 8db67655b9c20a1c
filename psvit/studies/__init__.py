"""Experiments over several seeds, and what they say."""
