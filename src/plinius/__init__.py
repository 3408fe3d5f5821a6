"""Plinius: machine learning on sealed data, with a sealed state that survives a kill.

    key = plinius.load_key("owner.key")
    with plinius.Mirror.open("run.region", key, {"model": model, "optimizer": optimizer}) as mirror:
        for iteration in range(mirror.mirror_in() + 1, 1001):
            ...  # one training step
            mirror.mirror_out(iteration)

The public API is what `__all__` lists. `import plinius` does not import torch; using `Mirror`,
`SealedDataset` or `ResumableLoader` does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from plinius.errors import PliniusError

if TYPE_CHECKING:
    from plinius.key_file import load_key
    from plinius.keys import OwnerKey
    from plinius.mirror import Mirror
    from plinius.sources.seal import seal
    from plinius.training.loader import ResumableLoader
    from plinius.training.prediction import Predictions, predict
    from plinius.training.torch_dataset import SealedDataset

__version__ = "0.1.0"
__all__ = [
    "Mirror",
    "seal",
    "predict",
    "Predictions",
    "SealedDataset",
    "ResumableLoader",
    "load_key",
    "OwnerKey",
    "PliniusError",
]

_WHEN_USED = {
    "OwnerKey": "plinius.keys",
    "load_key": "plinius.key_file",
    "Mirror": "plinius.mirror",
    "SealedDataset": "plinius.training.torch_dataset",
    "ResumableLoader": "plinius.training.loader",
    "seal": "plinius.sources.seal",
    "predict": "plinius.training.prediction",
    "Predictions": "plinius.training.prediction",
}


def __getattr__(name: str) -> Any:
    """Import a part when it is first used: most need torch, and all take time."""
    if name in _WHEN_USED:
        return getattr(importlib.import_module(_WHEN_USED[name]), name)
    raise AttributeError(f"module plinius has no attribute {name}")
