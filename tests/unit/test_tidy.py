"""The tree keeps its own rules."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for room in ("src", "native", "demo", "bench", "tests")
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
    """The host's bytes are never a program."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, ast.Attribute):
                assert (node.attr, getattr(node.value, "id", "")) not in {
                    ("load", "torch"),
                    ("load", "np"),
                }, path
