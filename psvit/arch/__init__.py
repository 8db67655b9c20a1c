"""Arch, its genotype, exact cost and named variants. No torch here."""
