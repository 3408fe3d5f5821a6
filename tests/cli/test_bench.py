"""`plinius bench` where the benchmarks are, and where they are not."""

import sys

import pytest

from cli.world import Result, call


def test_without_the_benchmarks_bench_says_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel does not hold them: one sentence and exit 1, with and without a name."""
    monkeypatch.setitem(sys.modules, "plinius_benchmarks.commands", None)
    monkeypatch.setitem(sys.modules, "plinius_benchmarks", None)
    for arguments in ([], ["sps"], ["--help"]):
        assert call("bench", *arguments) == Result(
            1,
            "",
            "plinius: The benchmarks are not part of the installed package. Clone the repository, "
            "run make setup in it, and use its .venv/bin/plinius.\n",
        )
    assert call("--help").code == 0


def test_the_benchmarks_of_a_clone_are_listed() -> None:
    """In a clone, bench shows the measurements."""
    listed = call("bench", "--help")
    assert listed.code == 0
    assert all(name in listed.stdout for name in ("sps", "mirror", "batch", "crash", "overhead"))
