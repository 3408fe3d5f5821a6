"""The tree keeps its own rules."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for room in ("src", "native", "tools", "demo", "examples", "tests")
    for path in sorted((ROOT / room).rglob("*"))
    if path.suffix in (".py", ".c")
    and "work" not in path.relative_to(ROOT).parts
    and path.name != "_persist.c"
]
assert len(FILES) > 50, "the tree was not found"
TESTS = [path for path in FILES if path.name.startswith("test_")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    """400 lines are the most a room holds."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_says_in_a_sentence_what_it_shows(path: Path) -> None:
    """Its docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno}"


def test_nothing_is_unpickled_or_evaluated() -> None:
    """The host's bytes are never a program; a benchmark's rival reads its own file, data only."""
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        data_only = {
            id(node.func)
            for node in ast.walk(tree)
            if path.parent.name == "plinius_benchmarks"
            and isinstance(node, ast.Call)
            and any(ast.unparse(word) == "weights_only=True" for word in node.keywords)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, ast.Attribute) and id(node) not in data_only:
                assert (node.attr, getattr(node.value, "id", "")) not in {
                    ("load", "torch"),
                    ("load", "np"),
                }, path


def test_every_promised_target_has_a_rule() -> None:
    """A name that is only phony is a command that does nothing and succeeds."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    (phony,) = (line.split(":")[1].split() for line in lines if line.startswith(".PHONY:"))
    rules = {match[1] for line in lines if (match := re.match(r"([a-z-]+):(?!=)", line))}
    assert set(phony) == rules >= {"setup", "demo", "test", "lint", "bench"}


def tracked(*options: str) -> list[str]:
    """The files that git tracks."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, check=True
    )
    return [name for name in listed.stdout.decode().split("\0") if name]


def test_nothing_that_is_ignored_or_large_is_tracked() -> None:
    """Regions and keys were once committed by accident."""
    assert tracked("-ci", "--exclude-standard") == []
    sizes = {name: (ROOT / name).stat().st_size for name in tracked() if (ROOT / name).exists()}
    assert {name: size for name, size in sizes.items() if size > 300_000} == {}


def test_the_trusted_core_stays_small() -> None:
    """Whoever wants to trust it has to read it: fewer than 3,000 lines of code, C included."""
    command = [sys.executable, str(ROOT / "tools" / "trusted_core.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.fullmatch(r"trusted core: \d+ files, [\d,]+ lines, ([\d,]+) of them code\n", said)
    assert match
    assert 2_000 < int(match[1].replace(",", "")) < 3_000


def test_no_secret_key_is_tracked() -> None:
    """Whatever its file is called, but for the public test key, which opens the vectors alone."""
    key = re.compile(rb"plinius-(?:owner|signing)-key-1 ([0-9a-f]{64})")
    files = [ROOT / name for name in tracked() if not name.startswith("tests/vectors/")]
    found = {path: set(key.findall(path.read_bytes())) for path in files if path.is_file()}
    public = bytes(range(32)).hex().encode()
    assert {path: keys - {public} for path, keys in found.items() if keys - {public}} == {}
