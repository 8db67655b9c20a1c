"""Analysis of one network: redundancy of its layers, and what they attend to."""
