"""What can go wrong, one class per decision a caller takes.

Every error says what was found and what to do next, in one sentence each. Failures of
authenticated decryption never say why.
"""


class PliniusError(Exception):
    """Base of all refusals: `what` was found, and the next step, `todo`."""

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(f"{what.rstrip('.')}. {todo.rstrip('.')}.")
        self.what = what
        self.todo = todo


class KeyFileError(PliniusError):
    """The key file cannot be used, or it holds another key: give the right one."""


class FormatError(PliniusError):
    """The bytes are foreign, truncated or of another version: give another file or program."""


class SealError(PliniusError):
    """Sealed bytes do not open: they were altered, or belong elsewhere. Do not go on."""


class SourceError(PliniusError):
    """Data to be sealed or trained on does not fit: mend the data or the command."""


class CfgError(PliniusError):
    """A network description cannot be built: mend the line it names."""


class RegionError(PliniusError):
    """The region's structure cannot be followed: it was damaged or altered."""


class RegionBusyError(PliniusError):
    """Another process holds the region: wait for it or stop it."""


class RegionFullError(PliniusError):
    """The region, or the disk under it, has no room: make room."""


class StorageError(PliniusError):
    """The file system refuses (read-only path, missing folder, input/output error)."""


class MismatchError(PliniusError):
    """A run differs from the one in the region: use its settings, or another region."""


class StateError(PliniusError):
    """The state holds something that a mirror cannot: take it out, or give its state in tensors."""


class DivergedError(PliniusError):
    """Training has left the numbers: change the recipe."""
