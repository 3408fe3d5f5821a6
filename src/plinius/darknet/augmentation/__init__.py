"""Darknet's changes of training pictures: crop, rotation, jitter, mirroring, colours, scale."""
