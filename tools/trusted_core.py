"""Counts the lines of the trusted core: what has to be right for sealed data to stay sealed.

Its Python rooms are those that pyproject.toml keeps free of torch (the import-linter contract);
the C file and its build script belong to it. A line counts as code if it holds a token that is no
comment and no docstring.
"""

import ast
import io
import re
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = "the trusted core needs no torch, no image decoder and no structures"
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
}  # fmt: skip


def main() -> None:
    """Print the counts."""
    counts = [lines_of(path) for path in files()]
    every, code = (sum(column) for column in zip(*counts, strict=True))
    print(f"trusted core: {len(counts)} files, {every:,} lines, {code:,} of them code")


def files() -> list[Path]:
    """The files of the trusted core."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (modules,) = (
        contract["source_modules"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["name"] == CONTRACT
    )
    found = [ROOT / "native" / "persist.c", ROOT / "native" / "build_persist.py"]
    for module in modules:
        at = ROOT / "src" / Path(*module.split("."))
        found += sorted(at.rglob("*.py")) if at.is_dir() else [at.with_suffix(".py")]
    return found


def lines_of(path: Path) -> tuple[int, int]:
    """All lines of a file, and those that are code."""
    text = path.read_text(encoding="utf-8")
    code = _python_code(text) if path.suffix == ".py" else _c_code(text)
    return len(text.splitlines()), code


def _python_code(text: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node):
            lines -= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    return len(lines)


def _c_code(text: str) -> int:
    bare = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return sum(bool(line.strip()) for line in bare.splitlines())


if __name__ == "__main__":
    main()
