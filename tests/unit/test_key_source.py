"""Where a key comes from: a file, standard input, a descriptor, a variable; under a passphrase."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from plinius.errors import KeyFileError
from plinius.key_file import load_key
from plinius.keys import OwnerKey

KEY = OwnerKey(bytes(range(32)))
LINE = f"plinius-owner-key-1 {bytes(range(32)).hex()}\n"
LOAD = "import sys, plinius; print(plinius.load_key(sys.argv[1]).id.hex())"


def loaded(where: str, text: str = "", descriptors: tuple[int, ...] = ()) -> str:
    """What another process says of the key that it loads from `where`."""
    command = [sys.executable, "-c", LOAD, where]
    ended = subprocess.run(
        command, input=text, capture_output=True, text=True, pass_fds=descriptors, check=False,
        start_new_session=True, timeout=60,
    )  # fmt: skip
    return (
        ended.stdout + ended.stderr.splitlines()[-1] if ended.returncode else ended.stdout.strip()
    )


def test_a_key_comes_by_standard_input_descriptor_or_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same key as from a file."""
    assert loaded("-", LINE) == KEY.id.hex()
    end, start = os.pipe()
    os.write(start, LINE.encode())
    os.close(start)
    assert loaded(f"fd:{end}", descriptors=(end,)) == KEY.id.hex()
    os.close(end)
    monkeypatch.setenv("A_KEY", LINE.strip())
    assert load_key("env:A_KEY").id == KEY.id
    assert load_key(Path("env:A_KEY")).id == KEY.id


def test_a_place_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its name, and without what was found there."""
    assert "standard input holds no owner's key." in loaded("-", "secret words")
    assert "standard input holds no owner's key." in loaded("-", "#" * 10_000)
    assert "Cannot read fd:77: Bad file descriptor." in loaded("fd:77")
    monkeypatch.setenv("A_KEY", "secret words")
    with pytest.raises(KeyFileError, match="^the variable A_KEY holds no owner's key"):
        load_key("env:A_KEY")
    with pytest.raises(KeyFileError, match="^There is no variable 'NO_KEY' in the environment"):
        load_key("env:NO_KEY")
    monkeypatch.chdir(tmp_path)
    KEY.save("env:A_KEY")
    assert load_key("./env:A_KEY").id == KEY.id
    with pytest.raises(KeyFileError, match="^Cannot read fd:x: No such file"):
        load_key("fd:x")


def test_a_wrapped_key_opens_with_its_passphrase_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either form of an accent; the file holds neither secret nor passphrase."""
    path = tmp_path / "key"
    KEY.save(path, "caf\u00e9 au lait")
    raw = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bytes(range(32)).hex() not in raw
    assert KEY.id.hex() in raw
    monkeypatch.setenv("PLINIUS_PASSPHRASE", "cafe\u0301 au lait")
    assert load_key(path).id == KEY.id
    for wrong in ("cafe au lait", "caf\u00e9 au lait "):
        monkeypatch.setenv("PLINIUS_PASSPHRASE", wrong)
        with pytest.raises(KeyFileError, match="does not open with this passphrase"):
            load_key(path)
    monkeypatch.setenv("PLINIUS_PASSPHRASE", "")
    with pytest.raises(KeyFileError, match="An empty passphrase protects nothing"):
        load_key(path)
    monkeypatch.delenv("PLINIUS_PASSPHRASE")
    assert "needs its passphrase, and there is no terminal to ask on" in loaded(str(path))


def test_a_wrapped_key_is_as_the_format_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line made by hand opens; with another id, or one bit flipped, it does not."""
    salt, word = bytes([2]) * 32, b"plinius-wrapped-key-1"
    sealing_key = Scrypt(salt=salt, length=32, n=2**17, r=8, p=1).derive(b"correct horse")
    sealed = AESGCM(sealing_key).encrypt(bytes(12), bytes(range(32)), word + KEY.id)
    path = tmp_path / "key"
    monkeypatch.setenv("PLINIUS_PASSPHRASE", "correct horse")

    def write(key_id: bytes, sealed: bytes) -> None:
        path.write_text(f"{word.decode()} {key_id.hex()} {salt.hex()} {sealed.hex()}\n")
        path.chmod(0o600)

    write(KEY.id, sealed)
    assert load_key(path).id == KEY.id
    for key_id, changed in ((bytes(8), sealed), (KEY.id, sealed[:-1] + bytes([sealed[-1] ^ 1]))):
        write(key_id, changed)
        with pytest.raises(KeyFileError, match="does not open with this passphrase"):
            load_key(path)
    page = Path(__file__).parents[2] / "docs" / "formats" / "owner-key.md"
    (line,) = re.findall(r"^plinius-wrapped-key-1 \S+ \S+ (\S+)$", page.read_text(), re.MULTILINE)
    assert line == sealed.hex()
    write(KEY.id, sealed[:-1])
    with pytest.raises(KeyFileError, match="holds no owner's key"):
        load_key(path)
