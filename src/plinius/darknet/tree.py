"""Trees and maps of classes.

A tree (darknet: tree.c, read_tree) has one line "name parent" for each class.

Classes with the same parent, one line after the other, are a group; -1 is the parent of the first.
"""

from dataclasses import dataclass

from plinius.errors import CfgError

MAX_TREE_BYTES = 1 << 22
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Tree:
    """`parents` and `groups` have one entry a class; `group_sizes` sum to their number."""

    parents: tuple[int, ...]
    groups: tuple[int, ...]
    group_sizes: tuple[int, ...]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.parents)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first class of each group."""
        return tuple(sum(self.group_sizes[:i]) for i in range(len(self.group_sizes)))


def parse_tree(text: str, name: str) -> Tree:
    """The tree in `text`; `name` is used in messages. Raises CfgError."""
    parents: list[int] = []
    groups: list[int] = []
    sizes: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        given = words[1] if len(words) > 1 else "-1"
        parent = int(given) if given.isascii() and _digits(given) else None
        if parent is None or not -1 <= parent < len(parents) or len(parents) == MAX_CLASSES:
            raise CfgError(
                f"{name}:{number}: {line[:40]!r} is no class of a tree",
                "A line is a name and the number of an earlier line, or -1",
            )
        if not sizes or parent != parents[-1]:
            sizes.append(0)
        sizes[-1] += 1
        groups.append(len(sizes) - 1)
        parents.append(parent)
    if not parents:
        raise CfgError(f"{name} holds no classes", "Name a tree file of Darknet")
    return Tree(tuple(parents), tuple(groups), tuple(sizes))


def parse_map(text: str, name: str) -> tuple[int, ...]:
    """A map of classes: one number a line (darknet: utils.c, read_map). Raises CfgError."""
    lines = text.split()
    if (
        not lines
        or len(lines) > MAX_CLASSES
        or not all(it.isascii() and _digits(it) for it in lines)
    ):
        raise CfgError(f"{name} is no map of classes", "A line is the number of a class")
    return tuple(int(line) for line in lines)


def _digits(text: str) -> bool:
    return text.removeprefix("-").isdigit() and len(text) < 8
