"""Images with boxes, masks or class maps: read from folders, composed, varied, batched."""
