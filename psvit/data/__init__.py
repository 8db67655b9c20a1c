"""Names and folders -> images, what is in them, splits, batches."""
