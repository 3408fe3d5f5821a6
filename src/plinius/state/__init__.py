"""The run state: live objects as JSON and named tensors, and back."""

from plinius.state import codecs

__all__ = ["codecs"]  # importing it fills the table of codecs
