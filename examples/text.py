"""Text that ships with Python (its own reference), as numbers below 128."""

import pydoc_data.topics

import torch

CHARACTERS = 128


def whole() -> bytes:
    """All of it."""
    return "\n".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")


class Text(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Stretches of the text, and the same moved on by one character."""

    def __init__(self, length: int) -> None:
        self._text = torch.frombuffer(bytearray(whole()), dtype=torch.uint8)
        self._length = length

    def __len__(self) -> int:
        """How many stretches there are, one after the other."""
        return (len(self._text) - 1) // self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One stretch: `input_ids` and `labels`, both (length,) int64."""
        start = index * self._length
        part = self._text[start : start + self._length + 1].long()
        return {"input_ids": part[:-1], "labels": part[1:]}
