"""The examples on the pages of the formats: the numbers there are what the program computes."""

import hmac
import os
import re
import struct
from pathlib import Path

import pytest

from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import SealError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.sealing import Sealer
from vectors.test_region_vectors import DIGESTS

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "formats"
VECTORS = Path(__file__).parent / "formats" / "sealed-dataset"
SECRET, SALT = bytes(range(32)), b"\2" * 32
PURPOSES = ("dataset-header", "dataset-records", "mirror")


def rows(page: str) -> dict[str, str]:
    """The two-column rows of a page whose second column is code: {first: second}."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `?([^|`]+?)`? \| `([^`]+)` \|$", text, re.MULTILINE))


def hkdf(salt: bytes, info: str, length: int) -> bytes:
    """RFC 5869 for up to 32 bytes, from the test key."""
    secret = hmac.digest(salt or bytes(32), SECRET, "sha256")
    return hmac.digest(secret, info.encode() + b"\1", "sha256")[:length]


def test_the_key_file_on_the_page_is_the_test_key(tmp_path: Path) -> None:
    """The page shows the file that save writes, byte by byte."""
    block = (PAGES / "owner-key.md").read_text(encoding="utf-8").split("```\n")[1]
    OwnerKey(SECRET).save(tmp_path / "key")
    assert (tmp_path / "key").read_text() == block == (VECTORS / "test.key").read_text()
    assert load_key(tmp_path / "key").id.hex() == rows("owner-key.md")["key id"]


def test_the_key_id_on_the_page_is_derived_as_it_says() -> None:
    """HKDF without a salt."""
    found = hkdf(b"", "plinius/1/key-id", 8).hex()
    assert rows("owner-key.md")["key id"] == found == OwnerKey(SECRET).id.hex()


@pytest.mark.parametrize("purpose", PURPOSES)
def test_object_keys_on_the_page_are_derived_as_it_says(purpose: str) -> None:
    """A sealer under the key on the page opens what the owner's sealer sealed."""
    derived = bytes.fromhex(rows("owner-key.md")[purpose])
    assert derived == hkdf(SALT, f"plinius/1/{purpose}", 32)
    sealed = OwnerKey(SECRET).sealer(purpose, SALT).seal(3, b"text", b"aad")
    assert Sealer(derived).open(3, sealed, b"aad") == b"text"


def test_the_values_of_a_dataset_on_the_page_are_those_of_the_file() -> None:
    """Header tag, meta block and record 1 of good.sealed."""
    page, raw = rows("sealed-dataset.md"), (VECTORS / "good.sealed").read_bytes()
    first = 256 + 58
    assert (len(raw), raw[240:256].hex()) == (383, page["header tag"])
    sealed = bytes.fromhex(page["sealed record 1"])
    assert raw[first + 23 : first + 46] == sealed
    keys = {name: Sealer(bytes.fromhex(rows("owner-key.md")[name])) for name in PURPOSES}
    meta = keys["dataset-header"].open(1, raw[256:first], raw[:256])
    assert meta.decode() == page["plaintext of the meta block"]
    aad = bytes.fromhex(page["associated data of record 1"])
    plain = keys["dataset-records"].open(1, sealed, aad)
    assert plain.hex() == page["plaintext of record 1"]
    with pytest.raises(SealError):
        keys["dataset-records"].open(1, sealed, aad[:-1] + b"\1")


@pytest.mark.parametrize(
    "text",
    [
        f"plinius-owner-key-1 {SECRET.hex().upper()}",
        f"# a\r\n\r\n \t plinius-owner-key-1\t{SECRET.hex()}  \r\n# b\r\n",
    ],
)
def test_a_reader_accepts_what_the_page_says(tmp_path: Path, text: str) -> None:
    """Upper case, CR LF, no LF at the end, more blanks."""
    path = tmp_path / "key"
    path.write_bytes(text.encode())
    os.chmod(path, 0o600)
    assert load_key(path).id == OwnerKey(SECRET).id


def test_the_manifest_and_the_digests_on_the_page_are_those_of_the_files() -> None:
    """Of good.region, and the digest of good-unchanged.region."""
    text = (PAGES / "mirror.md").read_text(encoding="utf-8")
    row = r"^\| `([a-z-]+\.region)` \| 2 \| `([0-9a-f]{64})` \|$"
    assert dict(re.findall(row, text, re.MULTILINE)) == DIGESTS
    image = (VECTORS.parent / "region" / "good.region").read_bytes()
    slot = 4096 + 2 * 16384 + 4096 + 16384
    salt, length = (
        image[slot + 64 : slot + 96],
        int.from_bytes(image[slot + 96 : slot + 104], "little"),
    )
    sealed = image[slot + 4096 : slot + 4096 + length]
    aad = struct.pack("<I16sQI", 3, b"\1" * 16, 3, 0)
    plain = Sealer(hkdf(salt, "plinius/1/mirror", 32)).open(0, sealed, aad)
    assert f"```\n{plain.decode()}\n```\n" in text


def test_every_vector_is_on_the_page() -> None:
    """And opens or not as it says there (test_sealed_dataset_vectors.py)."""
    text = (PAGES / "sealed-dataset.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([a-z-]+\.sealed)` \|", text, re.MULTILINE))
    assert named == {path.name for path in VECTORS.glob("*.sealed")}
    assert SealedDataset.from_file(VECTORS / "good.sealed", OwnerKey(SECRET)).class_names
