"""The signing key: its two files, and what they are not taken for."""

import stat
from pathlib import Path

import pytest

from plinius.errors import KeyFileError
from plinius.trust.signing import SigningKey, load_signer, load_signing_key


def test_a_signing_key_and_its_public_half_come_back_from_their_files(tmp_path: Path) -> None:
    """Both private files, never overwritten; what one signs the other verifies."""
    key = SigningKey.generate()
    public = key.save(tmp_path / "sign")
    assert public == tmp_path / "sign.pub"
    assert {stat.S_IMODE(it.stat().st_mode) for it in tmp_path.iterdir()} == {0o600}
    assert load_signer(public).verifies(b"text", load_signing_key(tmp_path / "sign").sign(b"text"))
    assert not load_signer(public).verifies(b"texts", key.sign(b"text"))
    secret = (tmp_path / "sign").read_text().split()[-1]
    assert secret not in public.read_text() + repr(key) + repr(key.signer)
    with pytest.raises(KeyFileError, match="exists already"):
        key.save(tmp_path / "sign")
    (tmp_path / "sign").unlink()
    with pytest.raises(KeyFileError, match=r"sign\.pub exists already"):
        key.save(tmp_path / "sign")


def test_files_that_hold_no_signing_key_are_refused(tmp_path: Path) -> None:
    """The halves are not taken for each other, and a secret that others can read is refused."""
    public = SigningKey.generate().save(tmp_path / "sign")
    with pytest.raises(KeyFileError, match="holds no signing key"):
        load_signing_key(public)
    with pytest.raises(KeyFileError, match="holds no signer"):
        load_signer(tmp_path / "sign")
    with pytest.raises(KeyFileError, match="No such file"):
        load_signer(tmp_path / "none")
    (tmp_path / "sign").chmod(0o640)
    with pytest.raises(KeyFileError, match="Others can read"):
        load_signing_key(tmp_path / "sign")
