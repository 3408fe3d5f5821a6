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
    from plinius.training.loader import ResumableLoader

__version__ = "0.1.0"
__all__ = ["Mirror", "ResumableLoader", "load_key", "OwnerKey", "PliniusError"]

_WITH_TORCH = {"Mirror": "plinius.mirror", "ResumableLoader": "plinius.training.loader"}


def __getattr__(name: str) -> Any:
    """What takes torch, when it is first asked for: the trusted core does without."""
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module plinius has no attribute {name}")
