"""What a network takes on this machine."""
