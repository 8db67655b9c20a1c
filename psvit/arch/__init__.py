"""Arch, its genotype, its exact cost, the named variants. No torch here."""
