"""JSON: a part that is written already is taken as it is."""

from plinius.jsonvalue import Json, JsonText, from_json, to_json


def test_a_part_that_is_written_already_stands_for_its_value() -> None:
    """At any depth, several times, and beside text that looks like JSON."""
    part: Json = {"b": [1.5, None, 'x"y', "\u00e9"], "a": {}}
    written = JsonText(to_json(part))
    tree: Json = {"z": [part, part], "a": part, "text": '","', "m": [[part]]}
    same: Json = {"z": [written, part], "a": written, "text": '","', "m": [[written]]}
    assert to_json(same) == to_json(tree)
    assert from_json(to_json(same)) == tree
    assert to_json(written) == to_json(part)


def test_a_written_part_can_hold_another() -> None:
    """The text of the inner one is part of the outer one's."""
    inner = JsonText(to_json([1]))
    assert to_json([JsonText(to_json([inner, 2])), 3]) == b"[[[1],2],3]"
