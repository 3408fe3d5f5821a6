"""Classes of a user's values: a mirror names them, and they are found without any import."""

import sys

from plinius.errors import MismatchError


class Classes:
    """The classes that this process has: those of the live state, and those of its modules.

    A mirror names a class; the class itself comes from the live objects or from a module that the
    program has imported. Nothing is imported because a mirror names it.
    """

    def __init__(self) -> None:
        self._registered: dict[str, type] = {}

    def register(self, cls: type) -> None:
        """Remember the class of a value in the live state, wherever it was defined."""
        self._registered[name_of(cls)] = cls

    def has(self, cls: type) -> bool:
        """Whether a process built like this one would find this very class by its name."""
        return self._found(name_of(cls)) is cls

    def find(self, name: str, of: type, path: str) -> type:
        """The class of that name, a subclass of `of`. Raises MismatchError if it is not here."""
        found = self._found(name)
        if found is None or not issubclass(found, of):
            raise MismatchError(
                f"{path} was a {name.replace(':', '.')}, and this process has no such class",
                "Import its module before mirror_in, as the run that was mirrored did",
            )
        return found

    def _found(self, name: str) -> type | None:
        if name in self._registered:
            return self._registered[name]
        module, _, qualname = name.partition(":")
        found: object = sys.modules.get(module)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) else None


def name_of(cls: type) -> str:
    """The name of a class in a mirror: `module:qualname`."""
    return f"{cls.__module__}:{cls.__qualname__}"
