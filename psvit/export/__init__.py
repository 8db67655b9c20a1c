"""A checkpoint -> files that other runtimes and hubs read."""
