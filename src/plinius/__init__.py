"""Plinius: machine learning on sealed data, with a sealed state that survives.

mirror = plinius.Mirror.open("run.region", plinius.load_key("owner.key"), state={...})
start = mirror.mirror_in()
...
    mirror.mirror_out(iteration)
"""

import importlib
from typing import TYPE_CHECKING, Any

from plinius.errors import PliniusError
from plinius.keys import OwnerKey, load_key

if TYPE_CHECKING:
    from plinius.mirror import Mirror

__version__ = "0.1.0"
__all__ = ["Mirror", "load_key", "OwnerKey", "PliniusError"]


def __getattr__(name: str) -> Any:
    """`Mirror` when it is first asked for: it takes torch, which the trusted core does without."""
    if name == "Mirror":
        return importlib.import_module("plinius.mirror").Mirror
    raise AttributeError(f"module plinius has no attribute {name}")
