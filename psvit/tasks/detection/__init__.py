"""Boxes and masks of objects: detectors over a pyramid of feature maps, trained, evaluated, used."""
