"""Hundreds of bad values, over all commands, in one process: a sentence each, and nothing left."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.bad_values import Desk
from cli.world import World, call, tree
from plinius.cli.main import main


@pytest.fixture(name="desk", scope="module")
def _desk(world: World, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    desk = Desk(world, trained, folder)
    desk.lay()
    return desk


def test_every_bad_file_is_refused_with_a_sentence(desk: Desk) -> None:
    """Exit 1, one sentence and a next step, no digit of a key, nothing made or changed."""
    before, secrets = tree(desk.folder, desk.world.folder), desk.secrets()
    wrong: list[str] = []
    count = 0
    for bad in desk.bad():
        count += 1
        began = time.monotonic()
        result = call(*bad.words)
        last = result.stderr.splitlines()[-1]
        shown = any(text in result.stdout + result.stderr for text in secrets)
        if (
            (result.code, result.stdout, shown) != (1, "", False)
            or bad.told not in last
            or not re.fullmatch(r"plinius: \S.*[.:] \S.*\.", last)
            or time.monotonic() - began > 10
        ):
            wrong.append(f"{' '.join(bad.words)}: {result.code}, {last}, wanted {bad.told}")
    assert not wrong, "\n".join(wrong)
    assert count >= 300
    assert tree(desk.folder, desk.world.folder) == before


def _commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group) and command.commands:
            yield from _commands(command, (*words, name))
        if name != "bench" and (not isinstance(command, click.Group) or name == "attest"):
            yield (*words, name)


COMMANDS = [*_commands(main)]


def _command(words: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_wrong_usage_is_told_before_anything_is_read(words: tuple[str, ...]) -> None:
    """Numbers, choices and digests that are none, an unknown option, a missing one: exit 2."""
    command = _command(words)
    arguments = ["x"] * sum(isinstance(it, click.Argument) for it in command.params)
    tried = [(["--no-such-option"], "No such option")]
    for option in command.params:
        if not isinstance(option, click.Option) or option.is_flag:
            continue
        if option.required:
            tried.append(([], "Missing "))
        if option.type.name not in ("path", "text"):
            for value in ("", "x", "-7", "None", "0x1"):
                tried.append(([option.opts[-1], value], "Invalid value for"))
    for more, told in tried:
        result = call(*words, *(arguments if told != "Missing " else []), *more)
        assert (result.code, result.stdout) == (2, ""), more
        assert told in result.stderr, more


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_says_what_it_is_for(words: tuple[str, ...]) -> None:
    """In a sentence; and so does the command."""
    command = _command(words)
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
            assert option.help.rstrip().endswith((".", ")")), option.help
