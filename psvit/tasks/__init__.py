"""What is learned: classification, detection, segmentation."""
