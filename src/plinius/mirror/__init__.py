"""The mirror of a training run: three lines that make it resumable."""

from plinius.mirror.mirror import Mirror
from plinius.mirror.own_loops import InexactResumeWarning

__all__ = ["InexactResumeWarning", "Mirror"]
