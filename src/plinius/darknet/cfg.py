"""Reads Darknet network descriptions (.cfg files; darknet: parser.c, read_cfg, option_list.c).

Spaces, tabs and carriage returns are ignored everywhere. A line that starts with `#` or `;` is a
comment, as is the rest of a value from a `#` on. `[kind]` starts a section, any other line is
`key=value`; if a key is repeated, its first value counts. The first section is `[net]` (or
`[network]`), each further section is a layer. What the original skips or misreads without a message
is a warning or an error here, with its line.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from plinius.darknet.cfg_keys import (
    ALIASES,
    COMMON_KEYS,
    COMMON_UNUSED,
    LAYER_KEYS,
    NET_KEYS,
    NO_EFFECT,
    POLICIES,
    REFUSED,
    UNSUPPORTED,
    UNUSED,
)
from plinius.darknet.cfg_options import MAX_VALUES, Value, real
from plinius.darknet.tree import MAX_TREE_BYTES, Tree, parse_map, parse_tree
from plinius.errors import CfgError
from plinius.files import read_file

MAX_BYTES = 1 << 20
MAX_SECTIONS = 1000
MAX_WARNINGS = 200
MAX_LINES = 50_000


@dataclass(frozen=True)
class Section:
    """One section: `kind` has aliases resolved, `options` has defaults filled in.

    `index` is the number of the layer, from 0; that of [net] is -1. `name` is the name of the file,
    `line` the line of the section, `lines` those of its keys.
    """

    kind: str
    index: int
    name: str
    line: int
    options: Mapping[str, Value]
    lines: Mapping[str, int]

    def integer(self, key: str) -> int:
        """The integer at `key`."""
        return cast(int, self.options[key])

    def real(self, key: str) -> float:
        """The number at `key`."""
        return float(cast(float, self.options[key]))

    def text(self, key: str) -> str:
        """The text at `key`."""
        return cast(str, self.options[key])

    def locate(self, what: str, key: str = "") -> str:
        """`what` after the file name, the line (of `key` if given) and the section."""
        return f"{self.name}:{self.lines.get(key, self.line)}: [{self.kind}] {what}"

    def error(self, what: str, todo: str, key: str = "") -> CfgError:
        """An error that says where it was found."""
        return CfgError(self.locate(what, key), todo)


@dataclass(frozen=True)
class Net:
    """The [net] section.

    One update (an iteration) uses `batch` records in `subdivisions` equal passes; in a recurrent
    network each is a sequence of `time_steps` rows. `max_batches` is the number of updates, 0 for
    no end. `decay` (L2) applies to weights only. A row has the shape height x width x channels, or
    `inputs` values if these are 0. The keys from `policy` to `scales` are those of `schedule.rate`,
    those from `angle` on say what is done to training pictures (darknet/augmentation).
    """

    batch: int
    subdivisions: int
    time_steps: int
    learning_rate: float
    momentum: float
    decay: float
    height: int
    width: int
    channels: int
    inputs: int
    policy: str
    burn_in: int
    power: float
    step: int
    scale: float
    gamma: float
    steps: tuple[float, ...]
    scales: tuple[float, ...]
    max_batches: int
    angle: float
    hue: float
    aspect: float
    saturation: float
    exposure: float
    max_crop: int | None
    min_crop: int | None
    max_ratio: float | None
    min_ratio: float | None
    center: int
    flip: int | None
    resize_step: int

    @property
    def sub_batch(self) -> int:
        """Rows per forward and backward pass: records times time_steps."""
        return self.batch // self.subdivisions * self.time_steps

    @property
    def rows(self) -> int:
        """Rows per update; by this number grows `seen`, the count in a .weights file."""
        return self.batch * self.time_steps


@dataclass(frozen=True)
class Cfg:
    """A network description: [net], the layer sections in order, and warnings for the user.

    `name` is used in messages; `sha256` is the hex digest of the bytes of the file, and of those of
    the other files that it names, if any. `trees` and `maps` are these: a map has the class of the
    network for each class of the data.
    """

    name: str
    net: Net
    sections: tuple[Section, ...]
    warnings: tuple[str, ...]
    sha256: str
    trees: Mapping[str, Tree] = field(default_factory=dict)
    maps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def class_map(self, section: Section) -> tuple[int, ...] | None:
        """The map that a section names. Raises CfgError if its file was not read."""
        name = section.options["map"]
        if name is None:
            return None
        if name not in self.maps:
            todo = "Read the cfg from a file, with the map beside it"
            raise section.error(f"map={_shown(str(name))} was not read", todo, "map")
        return self.maps[str(name)]

    def tree(self, section: Section) -> Tree | None:
        """The tree that a section names. Raises CfgError if its file was not read."""
        name = section.options["tree"]
        if name is None:
            return None
        if name not in self.trees:
            todo = "Read the cfg from a file, with the tree beside it"
            raise section.error(f"tree={_shown(str(name))} was not read", todo, "tree")
        return self.trees[str(name)]


def read_cfg(path: str | Path) -> Cfg:
    """Read the description at `path`, and the trees and maps that it names.

    They are looked for by their paths from its folder, from the folder above, and from the working
    folder. Raises StorageError, and CfgError with `path:line`.
    """
    cfg = parse_cfg(_text(path, MAX_BYTES), str(path))
    trees: dict[str, Tree] = {}
    maps: dict[str, tuple[int, ...]] = {}
    digest = hashlib.sha256(bytes.fromhex(cfg.sha256))
    for section in cfg.sections:
        for key in ("tree", "map"):
            name = section.options.get(key)
            if not isinstance(name, str) or name in (trees if key == "tree" else maps):
                continue
            folder = Path(path).parent
            found = [at for at in (folder, folder.parent, Path()) if (at / name).is_file()]
            text = _text((found or [folder])[0] / name, MAX_TREE_BYTES)
            if key == "tree":
                trees[name] = parse_tree(text, name)
            else:
                maps[name] = parse_map(text, name)
            digest.update(hashlib.sha256(text.encode()).digest())
    if not trees and not maps:
        return cfg
    return replace(cfg, trees=trees, maps=maps, sha256=digest.hexdigest())


def _text(path: str | Path, limit: int) -> str:
    try:
        return read_file(path, limit).decode("utf-8-sig")  # some editors begin with U+FEFF
    except UnicodeDecodeError:
        raise CfgError(f"{path} is not text", "Give a Darknet .cfg file") from None


def parse_cfg(text: str, name: str) -> Cfg:
    """Parse the description `text`; `name` is used in messages. Raises CfgError."""
    raw = text.encode()
    if len(raw) > MAX_BYTES:
        raise CfgError(f"{name} is larger than {MAX_BYTES} bytes", "Give a Darknet .cfg file")
    warnings: list[str] = []
    drafts = _drafts(text, name, warnings)
    sections = [_section(draft, at, name, warnings) for at, draft in enumerate(drafts, -1)]
    warnings.extend(_without_effect(drafts, sections))
    if not sections or sections[0].kind != "net":
        raise CfgError(f"{name} does not begin with [net]", "Start the file with a [net] section")
    if len(sections) == 1:
        raise CfgError(f"{name} has no layers", "Add a layer section after [net]")
    for section in sections[1:]:
        if section.kind == "net":
            raise section.error("appears a second time", "Keep one [net], the first section")
    net = _net(sections[0], warnings)
    if len(warnings) > MAX_WARNINGS:
        more = len(warnings) - MAX_WARNINGS
        warnings[MAX_WARNINGS:] = [f"{name}: {more} more warnings are not shown"]
    digest = hashlib.sha256(raw).hexdigest()
    return Cfg(name, net, tuple(sections[1:]), tuple(warnings), digest)


@dataclass
class _Draft:
    kind: str
    line: int
    pairs: dict[str, tuple[str, int]] = field(default_factory=dict)


def _drafts(text: str, name: str, warnings: list[str]) -> list[_Draft]:
    """The sections as texts and line numbers; only their kinds and repeated keys are checked."""
    drafts: list[_Draft] = []
    if text.count("\n") > MAX_LINES:
        raise CfgError(f"{name} has more than {MAX_LINES} lines", "Shorten the file")
    for number, written in enumerate(text.split("\n"), 1):
        line = re.sub(r"[ \t\r]", "", written)
        place = f"{name}:{number}:"
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            if len(drafts) == MAX_SECTIONS:
                raise CfgError(f"{place} more than {MAX_SECTIONS} sections", "Shorten the file")
            drafts.append(_Draft(_kind(line, place), number))
            continue
        key, equals, value = line.partition("=")
        if not equals or not key:
            raise CfgError(f"{place} {_shown(line)} is not key=value", "Correct or remove the line")
        if not drafts:
            raise CfgError(f"{place} a key before any section", "Start the file with [net]")
        kind, pairs = drafts[-1].kind, drafts[-1].pairs
        if key in pairs:
            first = pairs[key][1]
            warnings.append(
                f"{place} [{kind}] {_shown(key)} again; the value of line {first} counts"
            )
        else:
            pairs[key] = (value, number)
    return drafts


def _kind(line: str, place: str) -> str:
    given = line[1:-1] if line.endswith("]") else ""
    kind = ALIASES.get(given, given)
    if kind in UNSUPPORTED:
        raise CfgError(f"{place} section [{given}] is not supported", f"Supported: {_kinds()}")
    if kind != "net" and kind not in LAYER_KEYS:
        raise CfgError(f"{place} {_shown(line)} is not a section", f"Supported: {_kinds()}")
    return kind


def _kinds() -> str:
    return ", ".join(f"[{kind}]" for kind in ("net", *LAYER_KEYS))


def _section(draft: _Draft, index: int, name: str, warnings: list[str]) -> Section:
    """Check the keys, and convert each value to its type."""
    keys = NET_KEYS if draft.kind == "net" else COMMON_KEYS | LAYER_KEYS[draft.kind]
    unused = _unused(draft.kind)
    lines = {key: line for key, (_, line) in draft.pairs.items()}
    options: dict[str, Value] = {key: rule.default for key, rule in keys.items()}
    section = Section(draft.kind, index, name, draft.line, options, lines)
    for key, (text, _) in draft.pairs.items():
        if key in unused:
            continue
        if key not in keys:
            near = difflib.get_close_matches(key[:40], keys, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            warnings.append(section.locate(f"unknown key {_shown(key)} is ignored{hint}", key))
            continue
        value = keys[key].read(text)
        if value is None:
            raise section.error(f"{key}={_shown(text)}", f"{key} {keys[key].wanted}", key)
        if key in REFUSED and value != REFUSED[key]:
            raise section.error(f"{key} is not supported", "Remove the line", key)
        if key in NO_EFFECT and value != 0:
            warnings.append(section.locate(f"{key} has no effect, as on the original's CPU", key))
        options[key] = value
    return section


def _unused(kind: str) -> dict[str, float]:
    common = {} if kind == "net" else COMMON_UNUSED
    return common | UNUSED.get(kind, {})


def _without_effect(drafts: list[_Draft], sections: list[Section]) -> list[str]:
    """One warning for each kind of section that names keys which do nothing here."""
    warnings = []
    for kind in dict.fromkeys(draft.kind for draft in drafts):
        found: dict[str, Section] = {}
        for draft, section in zip(drafts, sections, strict=True):
            for key, (text, _) in draft.pairs.items() if draft.kind == kind else ():
                neutral = _unused(kind).get(key)
                if neutral is not None and (neutral == -1 or real(0).read(text) != neutral):
                    found.setdefault(key, section)
        if found:
            key, section = next(iter(found.items()))
            verb = "has" if len(found) == 1 else "have"
            warnings.append(section.locate(f"{', '.join(found)} {verb} no effect here", key))
    return warnings


def _net(section: Section, warnings: list[str]) -> Net:
    """The [net] section as Net; checks the rules that involve several keys."""
    values = dict(section.options)
    for ignored in ("adam", "clip"):
        del values[ignored]
    if values["policy"] not in POLICIES:
        known = ", ".join(POLICIES)
        what = f"unknown policy {_shown(section.text('policy'))} means constant (known: {known})"
        warnings.append(section.locate(what, "policy"))
        values["policy"] = "constant"
    pixels = section.integer("height") * section.integer("width") * section.integer("channels")
    inputs = section.integer("inputs") or pixels
    if not 0 < inputs <= MAX_VALUES:
        what = f"an input of {inputs} values"
        raise section.error(what, f"Give height, width and channels, at most {MAX_VALUES} values")
    if pixels and pixels != inputs:
        raise section.error(
            f"inputs is not height*width*channels = {pixels}", "Remove it", "inputs"
        )
    net = Net(**(values | {"inputs": inputs}))  # type: ignore[arg-type]
    if net.batch % net.subdivisions:
        todo = f"Make batch={net.batch} a multiple of subdivisions={net.subdivisions}"
        raise section.error("the batch does not divide evenly", todo, "subdivisions")
    if net.policy == "poly" and not net.max_batches:
        raise section.error("policy=poly needs the number of updates", "Give max_batches", "policy")
    if net.policy == "steps" and (not net.steps or len(net.steps) != len(net.scales)):
        raise section.error("steps and scales differ in length", "Give one scale per step", "steps")
    return net


def _shown(text: str) -> str:
    """Text from the file, shortened and safe to print: it may be a key file, given by mistake."""
    digits = "[0-9A-Fa-f]{16,}"
    text = re.sub(digits, lambda it: it[0] if it[0].isdecimal() else "(hex digits)", text)
    return repr(text if len(text) <= 40 else text[:40] + "...")
