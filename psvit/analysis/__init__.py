"""What one network does: where it repeats itself, what it looks at."""
