"""What can go wrong: one class for each decision that a caller can take.

A message has two parts: what was found, and what to do next. A failure of authenticated
decryption never says why it failed.
"""


class PliniusError(Exception):
    """Base class: `what` was found, and `todo`, the next step. The message is both."""

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(f"{what.rstrip('.')}. {todo.rstrip('.')}.")
        self.what = what
        self.todo = todo


class KeyFileError(PliniusError):
    """The key file cannot be used, or it holds another key: give the right one."""


class FormatError(PliniusError):
    """The file has another format or version, or is incomplete: give another file or program."""


class SealError(PliniusError):
    """Sealed bytes do not open: they were altered or belong elsewhere. Do not use them."""


class SourceError(PliniusError):
    """Data to be sealed or trained on does not fit: correct the data or the command."""


class CfgError(PliniusError):
    """A network description cannot be built: correct the line that the message names."""


class RegionError(PliniusError):
    """The structure of the region is not valid: it was damaged or altered."""


class RegionBusyError(PliniusError):
    """Another process uses the region: wait for it or stop it."""


class RegionFullError(PliniusError):
    """The region, or the disk it is on, is full: free some space."""


class StorageError(PliniusError):
    """The operating system refuses: a missing file, no permission, an input/output error."""


class NotInstalledError(PliniusError):
    """The command needs software that is not installed: install it."""


class MismatchError(PliniusError):
    """This run is not the one in the region: use that run's settings, or another region."""


class StateError(PliniusError):
    """The state holds something that cannot be mirrored: remove it, or give it as tensors."""


class JobError(PliniusError):
    """The job is not valid, or does not allow this: ask its owner for another job."""


class DivergedError(PliniusError):
    """The loss is no longer a finite number: change the training recipe."""
