"""The mirror of a training run: three lines that make it resumable."""

from plinius.mirror.mirror import Mirror

__all__ = ["Mirror"]
