"""A class for each pixel: decoders over a backbone, trained, evaluated, used."""
