"""What the tests of commands and of resuming share: one small world, and one trained region."""

import sys
from pathlib import Path

import pytest

from cli.world import World, call, make_world


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--soak`: many more runs that are killed (make soak)."""
    parser.addoption("--soak", action="store_true", help="Kill many more runs (takes minutes).")


@pytest.fixture(autouse=True)
def no_search_for_loaders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrors look at all objects of a process for loaders: half a million here, 70 ms each time.

    The tests of that are in test_own_loops.py, and processes that tests start do it.
    """
    if request.path.name != "test_own_loops.py" and "plinius.mirror.own_loops" in sys.modules:
        monkeypatch.setattr("plinius.mirror.own_loops._shuffles_outside", lambda parts: False)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world; nobody writes to it."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A region whose run is at its end; copy it to change it."""
    region = tmp_path_factory.mktemp("trained") / "run.region"
    assert call(*world.train(region)).code == 0
    return region
