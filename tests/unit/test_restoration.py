"""A state put back into objects that were made otherwise."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plinius.mirror import Mirror
from unit.mirroring import KEY


class Window:
    """The last values of something; shows its own tensor, or a copy, and loads a copy."""

    def __init__(self, values: list[float], *, own: bool) -> None:
        self.values = torch.tensor(values)
        self._own = own

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values if self._own else self.values.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"].clone()


@pytest.mark.parametrize("own", [True, False], ids=["own", "copy"])
@pytest.mark.parametrize("length", [0, 2, 3, 4])
def test_an_object_takes_on_a_state_whatever_the_shape_of_its_own(
    length: int, own: bool, tmp_path: Path
) -> None:
    """Empty, shorter, alike or longer: it comes back as it was."""
    path = tmp_path / "run.region"
    with Mirror.open(path, KEY, {"window": Window([1.0, 2.0, 3.0], own=own)}) as mirror:
        mirror.mirror_out(7)
    window = Window([0.0] * length, own=own)
    with Mirror.open(path, KEY, {"window": window}) as mirror:
        assert mirror.mirror_in() == 7
        assert mirror.not_bit_exact is None
    assert window.values.tolist() == [1.0, 2.0, 3.0]
