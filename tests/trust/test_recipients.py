"""Recipients: a dataset's key sealed to public halves, and what is refused."""

import os
import pickle
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.world import CLASSES, PLINIUS, RECORDS, World, call
from plinius.data.sealed_dataset import SealedDataset
from plinius.errors import FormatError, KeyFileError, PliniusError, SealError, StorageError
from plinius.key_file import load_key
from plinius.trust.recipients import (
    Recipient,
    RecipientKey,
    fresh_key_for,
    load_recipient,
    load_recipient_key,
    open_key_for,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "formats" / "recipient"


def recipients(folder: Path, *names: str) -> list[Path]:
    """Keys of recipients, made by the command."""
    for name in names:
        call("keygen", "--recipient", "-o", folder / f"{name}.key")
    return [folder / f"{name}.key" for name in names]


def pub(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def source(world: World) -> list[object]:
    return ["--images", world.images, "--labels", world.labels, "--classes", CLASSES]


def test_each_recipient_opens_the_data_and_nobody_else(world: World, tmp_path: Path) -> None:
    """The owner needs no key of its own; the key goes through a pipe into the next command."""
    ada, ben, eve = recipients(tmp_path, "ada", "ben", "eve")
    for file in (ada, pub(ada)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    sealed = tmp_path / "data.sealed"
    to = [part for key in (ada, ben) for part in ("--to", pub(key))]
    said = call("seal", *to, "-o", sealed, *source(world))
    assert said.stderr.endswith(
        f"{sealed}.to holds the key for 2 recipients: it goes with the data.\n"
    )
    for mine in (ada, ben):
        key = mine.with_suffix(".data")
        assert call("unwrap", f"{sealed}.to", "--with", mine, "-o", key).code == 0
        assert SealedDataset.from_file(sealed, load_key(key)).header.count == RECORDS
    identity = load_recipient_key(eve).recipient.id.hex()
    others = [load_recipient_key(key).recipient.id.hex() for key in (ada, ben)]
    assert call("unwrap", f"{sealed}.to", "--with", eve, "-o", tmp_path / "no.key").stderr == (
        f"plinius: {sealed}.to is not sealed to recipient {identity}, but to {', '.join(others)}. "
        "Ask its owner to seal the data to your public half too.\n"
    )
    assert not (tmp_path / "no.key").exists()
    unwrapped = f"{PLINIUS} unwrap {sealed}.to --with {ada}"
    ended = subprocess.run(
        ["bash", "-c", f"{PLINIUS} verify {sealed} --json --key fd:3 3< <({unwrapped})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    key_id = load_key(ada.with_suffix(".data")).id.hex()
    assert f"This is key {key_id}.\n" in ended.stderr


def test_the_public_half_is_printed_as_it_is_in_its_file(tmp_path: Path) -> None:
    """And a recipient is the same from both."""
    (key,) = recipients(tmp_path, "ada")
    assert call("keygen", "--public", key).stdout == pub(key).read_text()
    assert load_recipient(pub(key)).public == load_recipient_key(key).recipient.public
    said = call("keygen", "--public", key, "--json").json
    assert said["recipient"] == load_recipient(pub(key)).id.hex()
    with pytest.raises(TypeError):
        pickle.dumps(load_recipient_key(key))
    assert load_recipient_key(key)._secret.hex() not in repr(load_recipient_key(key))


def test_a_refused_seal_leaves_no_key_behind(world: World, tmp_path: Path) -> None:
    """Nor does it take the name of a file that is there."""
    (ada,) = recipients(tmp_path, "ada")
    out = tmp_path / "data.sealed"
    before = sorted(tmp_path.iterdir())
    bad = call("seal", "--to", pub(ada), "-o", out, "--csv", tmp_path / "no.csv", "--target", "x")
    assert bad.code == 1
    assert sorted(tmp_path.iterdir()) == before
    twice = call("seal", "--to", pub(ada), "--to", pub(ada), "-o", out, *source(world))
    assert twice.stderr == (
        "plinius: 2 recipients are given, 1 of them different. Give 1 to 64, each once.\n"
    )
    envelope = tmp_path / "data.sealed.to"
    envelope.write_text("somebody's")
    taken = call("seal", "--to", pub(ada), "-o", out, *source(world))
    assert taken.stderr == (
        f"plinius: {envelope} exists already. Choose another name, or remove it first.\n"
    )
    assert (envelope.read_text(), out.exists()) == ("somebody's", False)
    for usage, sentence in (
        (["--to", pub(ada), "--key", world.key], "give either --key or --to"),
        ([], "give either --key or --to"),
        (["--to", pub(ada), "--like", world.data], "so it does not go with --to"),
    ):
        csv = ["--csv", "x", "--target", "y"] if "--like" in usage else source(world)
        ended = call("seal", *usage, "-o", tmp_path / "other", *csv)
        assert (ended.code, sentence in ended.stderr) == (2, True)
    assert call("keygen").code == 2
    assert call("keygen", "--recipient", "--signing", "-o", tmp_path / "x").code == 2
    hidden = call("unwrap", envelope, "--with", ada, "--json")
    assert (hidden.code, "a key is not shown" in hidden.stderr) == (2, True)


def test_bad_files_are_refused_by_their_sentence(world: World, tmp_path: Path) -> None:
    """Of keys, public halves and sealed keys: foreign, cut, readable by others, a FIFO, no file."""
    (ada,) = recipients(tmp_path, "ada")
    envelope = tmp_path / "key.to"
    key = fresh_key_for([load_recipient(pub(ada))], envelope)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def refusal(kind: type[PliniusError], call: Callable[[], object]) -> str:
        with pytest.raises(kind) as caught:
            call()
        return str(caught.value)

    todo = "Name a file made by plinius keygen --recipient."
    assert refusal(KeyFileError, lambda: load_recipient_key(world.key)) == (
        f"{world.key} holds no recipient's key. {todo}"
    )
    loose = tmp_path / "loose.key"
    loose.write_bytes(ada.read_bytes())
    loose.chmod(0o644)
    assert "Others can read the key file" in refusal(
        KeyFileError, lambda: load_recipient_key(loose)
    )
    public = "Name the .pub file made by plinius keygen --recipient."
    text = pub(ada).read_text()
    other = tmp_path / "other.pub"
    for content in (text[:-5], text * 2, text.replace("=", ""), "", "x" * 5000):
        other.write_text(content)
        said = refusal(KeyFileError, lambda: load_recipient(other))
        assert said.endswith(public)
    assert refusal(KeyFileError, lambda: load_recipient(fifo)) == (
        f"Cannot read {fifo}: Not a regular file. {public}"
    )
    mine = load_recipient_key(ada)
    sealed = envelope.read_text()
    lines = sealed.splitlines()
    for content in (sealed[:-1], sealed + "x\n", lines[0] + "\n", "", sealed + lines[1] + "\n",
                    sealed.replace(lines[1][20:40], "", 1), lines[1] + "\n"):  # fmt: skip
        envelope.write_text(content)
        assert refusal(FormatError, lambda: open_key_for(envelope, mine)) == (
            f"{envelope} holds no key for recipients. Name the .to file that plinius seal --to "
            "made."
        )
    assert "Not a regular file" in refusal(StorageError, lambda: open_key_for(fifo, mine))
    envelope.write_text(sealed.replace(key.id.hex(), "0" * 16))
    assert refusal(SealError, lambda: open_key_for(envelope, mine)) == (
        "The sealed key does not open with this recipient's key. It was altered: fetch it again "
        "from its owner."
    )
    envelope.write_text(sealed)
    wrong = call("unwrap", envelope, "--with", ada, "--key-id", "0" * 16, "-o", tmp_path / "k")
    assert wrong.stderr == (
        f"plinius: {envelope} holds key {key.id.hex()}, not key {'0' * 16}. Ask the owner of the "
        "data.\n"
    )


def test_every_flipped_byte_of_a_sealed_key_is_refused(tmp_path: Path) -> None:
    """Also of what the KEM encapsulates: no flip gives another key."""
    mine = RecipientKey.generate()
    secret, key_id = bytes(32), bytes(8)
    sealed = mine.recipient.seal(secret, key_id)
    assert mine.open(sealed, key_id) == secret
    for at in (*range(0, len(sealed), 16), len(sealed) - 1):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SealError):
            mine.open(bytes(changed), key_id)
    with pytest.raises(SealError):
        mine.open(sealed, bytes(7) + b"\1")
    with pytest.raises(SealError):
        RecipientKey.generate().open(sealed, key_id)
    with pytest.raises(ValueError, match="1216"):
        Recipient(bytes(1215))


def test_the_fixed_files_still_open() -> None:
    """Those of docs/formats/recipients.md: a program that wrote others would notice."""
    mine = RecipientKey(bytes(range(96)))
    assert mine.recipient.id.hex() == "d99e4496af749b54"
    assert (VECTORS / "good.pub").read_text() == f"{mine.recipient.line}\n"
    key, text = open_key_for(VECTORS / "good.to", mine)
    assert key.id.hex() == "596dae7761826290"
    assert text == b"plinius-owner-key-1 " + bytes(range(32)).hex().encode() + b"\n"
