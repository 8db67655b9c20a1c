"""Images -> boxes, masks and classes of pixels: detection, instance and semantic segmentation."""
