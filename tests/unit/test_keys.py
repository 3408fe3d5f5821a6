"""Owners' keys: made once, readable by their owner only, never shown."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from plinius.errors import KeyFileError, StorageError
from plinius.key_file import load_key
from plinius.keys import OwnerKey

SECRET = bytes(range(32))
MADE = "Name a key file made by plinius keygen."


def test_a_saved_key_is_the_same_when_loaded(tmp_path: Path) -> None:
    """Saving and loading keeps the key; two new keys differ."""
    key = OwnerKey.generate()
    key.save(tmp_path / "key")
    assert load_key(tmp_path / "key").id == key.id
    sealed = key.sealer("x", b"salt").seal(0, b"text", b"")
    assert load_key(str(tmp_path / "key")).sealer("x", b"salt").open(0, sealed, b"") == b"text"
    assert OwnerKey.generate().id != key.id


def test_a_key_file_is_private(tmp_path: Path) -> None:
    """Its mode is 0600 whatever the umask, and one that others can read is refused."""
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        OwnerKey(SECRET).save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for mode in (0o640, 0o604, 0o610, 0o777):
        path.chmod(mode)
        with pytest.raises(KeyFileError) as caught:
            load_key(path)
        assert str(caught.value) == (
            f"Others can read the key file {path} (mode {mode:04o}). "
            f"Run chmod 600 {path}, and make a new key if others may have read it."
        )


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    """Overwriting a key would lose what it sealed."""
    path = tmp_path / "key"
    OwnerKey(SECRET).save(path)
    before = path.read_bytes()
    with pytest.raises(KeyFileError) as caught:
        OwnerKey.generate().save(path)
    assert str(caught.value) == (
        f"{path} exists already, and overwriting a key would lose all data sealed with it. "
        "Choose another name with -o."
    )
    assert path.read_bytes() == before


def test_a_key_never_shows_its_secret(tmp_path: Path) -> None:
    """Neither repr, str, format, attributes nor errors hold a digit of it; pickle is refused."""
    key = OwnerKey(SECRET)
    shown = f"{key!r} {key} {key.sealer('x', b'')!r}"
    assert shown == f"OwnerKey(id={key.id.hex()}) OwnerKey(id={key.id.hex()}) Sealer(<key>)"
    assert not hasattr(key, "__dict__")
    with pytest.raises(KeyFileError) as caught:
        key.require(bytes(8), "d.sealed")
    for text in (shown, str(caught.value), repr(caught.value)):
        assert SECRET.hex()[:8] not in text
        assert repr(SECRET)[2:10] not in text
    with pytest.raises(TypeError, match="^an owner's key is pickled only for a process"):
        pickle.dumps(key)


def test_another_key_is_named_by_its_id() -> None:
    """The ids of both keys are in the sentence; the right one passes."""
    key = OwnerKey(SECRET)
    key.require(key.id, "d.sealed")
    with pytest.raises(KeyFileError) as caught:
        key.require(b"\xab" * 8, "d.sealed")
    assert str(caught.value) == (
        f"d.sealed was sealed with key {'ab' * 8}, but this is key {key.id.hex()}. "
        "Give the key file it was sealed with (--key)."
    )


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    """A key has 32 bytes."""
    with pytest.raises(ValueError, match="^an owner's key is 32 bytes$"):
        OwnerKey(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing but a comment\n",
        f"plinius-owner-key-2 {SECRET.hex()}\n",
        f"plinius-owner-key-1 {SECRET.hex()} more\n",
        f"plinius-owner-key-1 {SECRET.hex()[:-2]}\n",
        f"plinius-owner-key-1 {SECRET.hex()[:-2]}zz\n",
        f"plinius-owner-key-1 {SECRET.hex()}\n" * 2,
        "plinius-owner-key-1\n",
        "\xff\xfe\0",
        "#" * 5000 + f"\nplinius-owner-key-1 {SECRET.hex()}\n",
        f"plinius-owner-key-1 {SECRET.hex()}\n" + "#" * 5000,
    ],
)
def test_files_without_a_key_are_refused(tmp_path: Path, text: str) -> None:
    """Foreign, cut, doubled or overlong files hold no key, and the sentence shows none."""
    path = tmp_path / "key"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(KeyFileError) as caught:
        load_key(path)
    assert str(caught.value) == f"{path} holds no owner's key. {MADE}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A missing file, and a pipe that would block."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, words in (
        (tmp_path / "none", f"Cannot read {tmp_path}/none: No such file or directory"),
        (tmp_path / "pipe", f"Cannot read {tmp_path}/pipe: Not a regular file"),
    ):
        with pytest.raises(KeyFileError) as caught:
            load_key(path)
        assert str(caught.value) == f"{words}. {MADE}"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder is no key file."""
    with pytest.raises(KeyFileError, match=f"^Cannot read {tmp_path}: Is a directory"):
        load_key(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """Saving into nowhere is the file system's refusal."""
    path = tmp_path / "none" / "key"
    with pytest.raises(StorageError, match=f"^Cannot write {path}: No such file or directory"):
        OwnerKey(SECRET).save(path)


CASES = Path(__file__).parents[1] / "vectors" / "formats" / "owner-key" / "cases.json"


@pytest.mark.parametrize("case", json.loads(CASES.read_text()), ids=lambda case: case["name"])
def test_each_key_file_of_the_format_ends_as_written(case: dict[str, str], tmp_path: Path) -> None:
    """The committed vectors: the same key, or none."""
    path = tmp_path / "key"
    path.write_bytes(case["text"].encode("latin-1"))
    path.chmod(int(case["mode"], 8))
    if case["ends"] == "opens":
        assert load_key(path).id == OwnerKey(bytes(range(32))).id
    else:
        with pytest.raises(KeyFileError):
            load_key(path)
