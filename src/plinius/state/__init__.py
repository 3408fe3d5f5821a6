"""The run state: live objects as JSON and named tensors, and back."""

from plinius.state import arrays, containers, objects, subclasses, values

__all__ = ["arrays", "containers", "objects", "subclasses", "values"]  # each adds its codecs
