"""Data -> weights -> figures."""
