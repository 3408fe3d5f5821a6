"""Codecs: each file adds its own to the table in state/codec.py."""

from plinius.state.codecs import (
    containers,
    generators,
    modules,
    numpy_arrays,
    python_values,
    stateful_objects,
    tensors,
    user_classes,
)

__all__ = [
    "containers",
    "generators",
    "modules",
    "numpy_arrays",
    "python_values",
    "stateful_objects",
    "tensors",
    "user_classes",
]
