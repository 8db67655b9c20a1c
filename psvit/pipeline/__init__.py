"""psvit run: data and a budget -> a search, trainings, a comparison, a report."""
