"""What a run begins with: the parameters in a file, and where they are in the schedule."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from plinius.darknet.network import Network
from plinius.darknet.weights import load_weights_bytes, read_parameters
from plinius.errors import FormatError, SealError
from plinius.jsonvalue import Json
from plinius.keys import OwnerKey
from plinius.pm.region import Region
from plinius.slots import Slots
from plinius.training.safetensors_files import load_safetensors


@dataclass(frozen=True)
class Beginning:
    """`sha256` is that of the file of parameters, None without one.

    `upto` is how many layers it held, None for all. `seen` is the number of rows that they were
    trained on: the schedule goes on there.
    """

    sha256: str | None = None
    seen: int = 0
    upto: int | None = None

    @classmethod
    def of(cls, identity: dict[str, Json]) -> "Beginning":
        """The beginning that the identity of a run names."""
        return cls(
            cast(str | None, identity.get("weights")),
            cast(int, identity.get("seen", 0)),
            cast(int | None, identity.get("upto")),
        )

    def identity(self) -> dict[str, Json]:
        """What it adds to the identity of a run: nothing if it began without parameters."""
        added: dict[str, Json] = {}
        if self.sha256 is not None:
            added["weights"] = self.sha256
        if self.seen:
            added["seen"] = self.seen
        if self.upto is not None:
            added["upto"] = self.upto
        return added


def begin(network: Network, path: Path, upto: int | None = None, clear: bool = False) -> Beginning:
    """Load the parameters in a .weights or .safetensors file into a network.

    With `upto`, a .weights file holds only the layers before this number. The rows that it has seen
    count, unless `clear`; a .safetensors file has no place in the schedule. Raises StorageError,
    FormatError and MismatchError.
    """
    data = read_parameters(network, path)
    digest = hashlib.sha256(data).hexdigest()
    if path.suffix == ".safetensors":
        if upto is not None:
            what = f"{path} names its tensors, so it is not cut after a layer"
            raise FormatError(what, "Leave out --upto, or give a .weights file")
        load_safetensors(network, data, str(path))
        return Beginning(digest)
    seen = load_weights_bytes(network, data, str(path), upto)
    return Beginning(digest, 0 if clear else seen, upto)


def stored_identity(region: Region, key: OwnerKey, accept_previous: bool) -> dict[str, Json]:
    """The identity of the run in an open region, empty if there is none, or it does not open.

    The mirror compares it with what it reads itself; here it only fills what was not given again.
    """
    slots = Slots.open(region, key)
    if slots is None:
        return {}
    try:
        manifest = slots.newest()
    except SealError:
        manifest = slots.before_newest() if accept_previous else None
    finally:
        slots.close()
    return manifest.identity if manifest else {}
