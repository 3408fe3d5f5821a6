"""Mutants: the persistence protocol with one mistake in a flush, a fence, a store or their order.

Each is made from the source of a function: the function's code is replaced in memory while the
mutant runs, and no file changes. Every statement that calls one of `CALLS` is dropped, and is moved
behind the next such one; ranges are halved and moved; what is flushed is only stored; one state or
slot is used in place of another.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType

CALLS = {
    "flush", "drain", "fence", "store", "store_word", "store_words", "write", "copy", "resize",
    "grow_to", "flush_lines", "copy_lines", "swap_words", "_log_lines", "set_extent", "add_extent",
    "append", "clear",
    "_set", "_begin", "_end", "_commit", "_roll_back", "_copy", "_finish", "_recover",
    "_grow_for", "replace_extent", "_fill", "fill", "_put_word", "put", "seal", "recover",
}  # fmt: skip
STATES = ("IDLE", "MUTATING", "COPYING")
_HALVED = {"flush": 1, "copy": 2}  # which argument is the length
_LISTED = {"flush_lines": 2, "copy_lines": 3}  # which argument is the list


@dataclass(frozen=True)
class Mutant:
    """A function and the code that takes its place."""

    name: str
    function: FunctionType
    code: CodeType

    @contextmanager
    def alive(self) -> Iterator[None]:
        """A context in which the mutant runs in place of the function."""
        original = self.function.__code__
        self.function.__code__ = self.code
        try:
            yield
        finally:
            self.function.__code__ = original


def mutants_of(module: ModuleType) -> list[Mutant]:
    """Every mutant of every function of a module, by name."""
    tree = ast.parse(inspect.getsource(module))
    found: dict[str, Mutant] = {}
    for qualname, path in _functions(tree):
        if qualname == "Region.consistency_check":
            continue  # it changes nothing
        function = _function(module, qualname)
        for what, change in _changes(path(tree)):
            mutated = copy.deepcopy(tree)
            change(path(mutated))
            code = compile(ast.fix_missing_locations(mutated), "<mutant>", "exec")
            name = f"{module.__name__.removeprefix('plinius.')}.{qualname}: {what}"
            while name in found:
                name += " (again)"
            found[name] = Mutant(name, function, _code(code, qualname))
    return list(found.values())


Path = Callable[[ast.Module], ast.FunctionDef]
Change = Callable[[ast.FunctionDef], None]


def _functions(tree: ast.Module) -> Iterator[tuple[str, Path]]:
    for i, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef):
            yield node.name, lambda t, i=i: t.body[i]  # type: ignore[misc]
        elif isinstance(node, ast.ClassDef):
            for j, inner in enumerate(node.body):
                if isinstance(inner, ast.FunctionDef):
                    yield (
                        f"{node.name}.{inner.name}",
                        lambda t, i=i, j=j: t.body[i].body[j],  # type: ignore[misc]
                    )


def _function(module: ModuleType, qualname: str) -> FunctionType:
    found: object = module
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part)
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)  # what a classmethod wraps
    return inspect.unwrap(found)  # type: ignore[arg-type,return-value]


def _code(code: CodeType, qualname: str) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == qualname:
                return constant
            if qualname.startswith(constant.co_qualname + "."):
                return _code(constant, qualname)
    raise LookupError(qualname)


def _changes(function: ast.FunctionDef) -> Iterator[tuple[str, Change]]:
    """What can be made wrong in a function. Nodes are found again by their number in a walk."""
    for number, node in enumerate(ast.walk(function)):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield from _block_changes(number, field, block)
        if isinstance(node, ast.Call):
            for what, replaced in _call_changes(node):
                yield f"{what} `{_text(node)}`", _replacing(number, replaced)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "TwinState":
            for state in STATES:
                if state != node.attr and node.attr in STATES:
                    other = ast.parse(f"TwinState.{state}", mode="eval").body
                    yield f"{state} for {node.attr}", _replacing(number, other)
        elif isinstance(node, ast.IfExp) and "TwinState" in ast.unparse(node.test):
            turned = ast.IfExp(node.test, node.orelse, node.body)
            yield f"turn `{_text(node)}`", _replacing(number, turned)
        elif isinstance(node, ast.BinOp) and ast.unparse(node) == "(self._counter + 1) % 2":
            other = ast.parse("self._counter % 2", mode="eval").body
            yield "the other slot", _replacing(number, other)


def _block_changes(number: int, field: str, block: list[ast.stmt]) -> Iterator[tuple[str, Change]]:
    for i, statement in enumerate(block):
        if _forgets(statement):
            yield f"drop `{_text(statement)}`", _dropping(number, field, i)
            continue
        if not _is_protocol(statement):
            continue
        if isinstance(statement, ast.Expr):
            yield f"drop `{_text(statement)}`", _dropping(number, field, i)
        later = next((j for j in range(i + 1, len(block)) if _is_protocol(block[j])), None)
        if later is not None and not isinstance(block[later], ast.Return):

            def delay(function: ast.FunctionDef, i: int = i, later: int = later) -> None:
                there = getattr(_node(function, number), field)
                there.insert(later, there.pop(i))

            yield f"`{_text(statement)}` after `{_text(block[later])}`", delay


def _dropping(number: int, field: str, i: int) -> Change:
    def drop(function: ast.FunctionDef) -> None:
        getattr(_node(function, number), field)[i] = ast.Pass()

    return drop


def _forgets(statement: ast.stmt) -> bool:
    """Whether it has the planner rely on nothing in the slots."""
    return ast.unparse(statement) == "self._planner.forget()"


def _call_changes(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    name = _called(call)
    if name in _HALVED and len(call.args) == _HALVED[name] + 1:
        at = _HALVED[name]
        if ast.unparse(call.args[at]) != "8":  # a word: less of it would be the same line
            yield "half of", _with_args(call, {at: "({}) // 2"})
            yield "8 bytes of", _with_args(call, {at: "min(8, {})"})
        if name == "flush":
            yield "past a line of", _with_args(call, {0: "({}) + 64", 1: "max(({}) - 64, 0)"})
        else:
            medium = ast.unparse(call.func).removesuffix(".copy")
            to, source, length = map(ast.unparse, call.args)
            text = f"{medium}.store({to}, bytes({medium}.read({source}, {length})))"
            yield "do not flush", ast.parse(text, mode="eval").body
    elif name == "write" and isinstance(call.func, ast.Attribute):
        yield "half of", _with_args(call, {1: "({0})[:len({0}) // 2]"})
        text = ast.unparse(call.func).removesuffix("write") + "store"
        only = copy.deepcopy(call)
        only.func = ast.parse(text, mode="eval").body
        yield "do not flush", only
    elif name in _LISTED:
        yield "all but the last of", _with_args(call, {_LISTED[name]: "({})[:-1]"})
        yield "all but the first of", _with_args(call, {_LISTED[name]: "({})[1:]"})
    elif name == "append" and ast.unparse(call.func) == "self._log.append":
        yield "a word of", _with_args(call, {0: "(({0})[0], ({0})[0] + 8)"})
        yield "a line less of", _with_args(call, {0: "(({0})[0] + 64, ({0})[1])"})
    elif name == "append" and ast.unparse(call.func) == "self._lines.append":
        yield "all but the last of", _with_args(call, {0: "({})[:-1]"})


def _with_args(call: ast.Call, changes: dict[int, str]) -> ast.Call:
    changed = copy.deepcopy(call)
    for at, template in changes.items():
        text = template.format(ast.unparse(call.args[at]))
        changed.args[at] = ast.parse(text, mode="eval").body
    return changed


def _replacing(number: int, new: ast.expr) -> Change:
    def replace(function: ast.FunctionDef) -> None:
        old = _node(function, number)
        for parent in ast.walk(function):
            for field, value in ast.iter_fields(parent):
                if value is old:
                    setattr(parent, field, copy.deepcopy(new))
                elif isinstance(value, list) and any(item is old for item in value):
                    value[[item is old for item in value].index(True)] = copy.deepcopy(new)

    return replace


def _node(function: ast.FunctionDef, number: int) -> ast.AST:
    return list(ast.walk(function))[number]


def _is_protocol(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.With | ast.Try):
        return False
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any(_called(call) in CALLS for call in calls)


def _called(call: ast.Call) -> str:
    """The method that is called; of the methods of lists, only those of logs count."""
    whole = ast.unparse(call.func)
    name = whole.rsplit(".", 1)[-1]
    in_log = whole.startswith(("self._log.", "self._lines.", "self._joined.", "log."))
    return name if in_log or name not in ("append", "clear") else whole


def _text(node: ast.AST) -> str:
    first = ast.unparse(node).splitlines()[0]
    return textwrap.shorten(first, 90, placeholder=" ...")
