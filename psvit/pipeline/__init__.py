"""psvit run: search, train, compare and report."""
