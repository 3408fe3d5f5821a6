"""Plinius: machine learning on sealed data that survives being killed."""

__version__ = "0.1.0"
