"""What the pages name exists: links, files, make targets, names of the package, commands."""

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from plinius.cli.main import main
from plinius.training.metrics import IterationMetrics, ValidationMetrics
from plinius.training.scores import classification, regression

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")})
assert len(PAGES) > 10, "the pages were not found"
ROOMS = ("src", "tests", "docs", "demo", "examples", "tools", "native")
MADE = {"examples/work"}
NO_COMMANDS = {"state 1"}  # the text that a state digest begins with
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_of(page: Path) -> Iterator[str]:
    """What a page shows as code within its sentences."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    yield from re.findall(r"`([^`\n]+)`", prose)


def anchors_of(page: Path) -> set[str]:
    """The fragments that a link to a page may have, one for each heading."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """Links to files and headings of the repository; addresses of the web are not opened."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors_of(there), target


@each_page
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """Paths from the root of the clone, and test files by their names."""
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    for code in code_of(page):
        if code.split("/")[0] in ROOMS and "/" in code and re.fullmatch(r"[\w./-]+", code):
            assert code in MADE or (ROOT / code).exists(), code
        if re.fullmatch(r"test_\w+\.py", code):
            assert code in tests, code


@each_page
def test_every_name_of_the_package_on_a_page_exists(page: Path) -> None:
    """Modules, classes and functions that begin with `plinius.`."""
    for code in code_of(page):
        match = re.match(r"(plinius(?:\.\w+)+)\b", code)
        if match is None:
            continue
        module, *names = match[1].split(".")
        found: object = importlib.import_module(module)
        for name in names:
            if not hasattr(found, name):
                found = importlib.import_module(f"{getattr(found, '__name__', '')}.{name}")
            else:
                found = getattr(found, name)


@each_page
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    """`make TARGET`, and `plinius COMMAND` with its options."""
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.M)
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.M):
        assert target in targets, target
    for line in re.findall(r"(?:^|`)plinius ([a-z][^`\n]*)", text, flags=re.M):
        words = [] if line in NO_COMMANDS else line.split()
        command: click.Command = main
        while words and isinstance(command, click.Group) and words[0].islower():
            name = words.pop(0).rstrip(".,:")
            found = command.get_command(click.Context(command), name)
            assert found is not None, line
            command = found
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", " ".join(words)):
            assert option in known, line


def test_the_page_of_threats_lists_every_metric_that_leaves() -> None:
    """In its section of metrics, and no other one."""
    text = (ROOT / "THREATS.md").read_text(encoding="utf-8")
    section = text.split("## Metrics that leave\n")[1].split("\n## ")[0].split(". They leave")[0]
    listed = set(re.findall(r"`(\w+)`", section)) - {"test"}
    classes = (IterationMetrics, ValidationMetrics)
    fields = {field.name for metrics in classes for field in dataclasses.fields(metrics)}
    one = np.zeros(1, np.int64)
    judged = {*classification(one, one, 2), *regression(np.ones((2, 1)), np.ones((2, 1)))}
    assert listed == fields | judged | {"iteration", "auc", "mean_average_precision"}
