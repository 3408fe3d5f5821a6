"""A job with recipients: what it exports and predicts is sealed for them, and never in clear."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.world import HELD_OUT, World, call
from plinius.darknet.weights import weights_file
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import SourceError
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.slots import newest_snapshot
from plinius.sources.clear_files import source_of, write_clear
from plinius.sources.sealed_file import file_source
from plinius.training.evaluation import trained_network
from plinius.training.safetensors_files import safetensors_file
from plinius.trust.recipients import load_recipient
from trust.test_recipients import pub, recipients


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a job whose recipients are ada and ben."""
    folder = tmp_path_factory.mktemp("job")
    call("keygen", "--signing", "-o", folder / "sign")
    to = [
        part for key in recipients(folder, "ada", "ben", "eve")[:2] for part in ("--for", pub(key))
    ]
    made = call(
        *("job", "create", world.cfg, "--data", world.data, "--test", world.held_out, *to),
        *("--key", world.key, "--sign", folder / "sign", "-o", folder / "job", "--json"),
        *("--export", "model", "--allow", "predictions", "--iterations", 2),
    )
    ids = [load_recipient(pub(folder / f"{name}.key")).id.hex() for name in ("ada", "ben")]
    assert (made.json["recipients"], made.json["unbounded"]) == (ids, [])
    assert call(*world.train(folder / "region", *under(folder))).code == 0
    return folder


def under(folder: Path) -> list[object]:
    return ["--job", folder / "job", "--owner", folder / "sign.pub"]


def opened(folder: Path, sealed: Path, who: str, output: Path) -> bytes:
    """What a recipient gets out of a sealed file."""
    key = output.with_name(f"{output.name}.key")
    assert call("unwrap", f"{sealed}.to", "--with", folder / f"{who}.key", "-o", key).code == 0
    told = call("open", sealed, "--key", key, "-o", output)
    assert told.code == 0, told.stderr
    return output.read_bytes()


def test_what_a_job_exports_is_sealed_for_its_recipients(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """Each gets the bytes that would have left in clear; the owner's key does not open them."""
    using = ["--region", trained / "region", "--key", world.key]
    state = newest_snapshot(trained / "region", load_key(world.key))
    in_clear = {
        ".safetensors": safetensors_file(state, "model", {"iteration": "2", "seen": "16"})[0],
        ".weights": weights_file(trained_network(world.cfg, state), 16),
    }
    for kind in in_clear:
        sealed = tmp_path / f"net{kind}.sealed"
        said = call("export", world.cfg, *using, *under(trained), "-o", sealed)
        assert f"{sealed}.to holds the key for 2 recipients" in said.stderr
        assert "in clear" not in said.stderr
        found = {opened(trained, sealed, who, tmp_path / f"{who}{kind}") for who in ("ada", "ben")}
        assert len(found) == 1
        (data,) = found
        start = 8 + int.from_bytes(data[:8], "little") if kind == ".safetensors" else 0
        assert data[start:] == in_clear[kind][start:]  # its metadata have no order
        assert data[-64:] not in sealed.read_bytes()
        eve = call("unwrap", f"{sealed}.to", "--with", trained / "eve.key", "-o", tmp_path / "k")
        assert "is not sealed to recipient" in eve.stderr
        assert call("open", sealed, "--key", world.key, "-o", tmp_path / f"x{kind}").code == 1
    other = tmp_path / "x.csv"
    told = call("open", sealed, "--key", tmp_path / "ada.weights.key", "-o", other)
    assert (
        told.stderr
        == f"plinius: {sealed.name} holds a .weights file. Write it as one: -o x.weights.\n"
    )
    assert not other.exists()


def test_what_a_job_predicts_is_sealed_for_its_recipients(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """A recipient opens the predictions as a table."""
    sealed = tmp_path / "said.sealed"
    using = ["--region", trained / "region", "--key", world.key, "--data", world.held_out]
    told = call("predict", world.cfg, *using, *under(trained), "-o", sealed, "--json")
    assert told.json["sealed"] is True
    table = opened(trained, sealed, "ben", tmp_path / "said.csv").decode().splitlines()
    assert len(table) == HELD_OUT + 1


def test_nothing_leaves_in_clear_under_a_job_with_recipients(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """By no suffix, and not before the refusal."""
    using = ["--region", trained / "region", "--key", world.key, *under(trained)]
    for name in ("net.safetensors", "net.weights", "net.onnx"):
        told = call("export", world.cfg, *using, "-o", tmp_path / name)
        assert told.stderr == (
            f"plinius: The job does not allow an output in clear ({name}), only: a .sealed file, "
            "for its recipients. Do what the job says (plinius job show), or ask its owner for "
            "another job.\n"
        )
    for name in ("said.csv", "said.npz", "said.json"):
        told = call("predict", world.cfg, *using, "--data", world.held_out, "-o", tmp_path / name)
        assert "does not allow an output in clear" in told.stderr
    assert call("export", world.cfg, *using, "-o", tmp_path / "net.sealed").code == 2
    assert not [*tmp_path.iterdir()]


def test_pieces_that_are_no_file_are_refused(tmp_path: Path) -> None:
    """A length that is not theirs, another suffix, other records, and a file that is none."""
    whole = b"0123456789"
    key = OwnerKey.generate()

    def about(said: object) -> Callable[[], object]:
        source = dataclasses.replace(
            file_source(whole, ".weights"),
            about={"file": said},  # type: ignore[dict-item]
        )
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.sealed"
        seal_dataset(source, key, path)
        found = source_of(SealedDataset.from_file(path, key))
        return lambda: write_clear(found, tmp_path / "out.weights")

    sizes = [{"suffix": ".weights", "bytes": size} for size in (0, 11, -1, True, 1.5, "10")]
    wrong: list[object] = [None, [], {}, {"suffix": "/x", "bytes": 10}, *sizes]
    for said in wrong:
        with pytest.raises(SourceError, match="holds no file"):
            about(said)()
    assert [path.suffix for path in tmp_path.iterdir()] == [".sealed"] * 10
    about({"suffix": ".weights", "bytes": 10})()
    assert (tmp_path / "out.weights").read_bytes() == whole
    long = bytes(range(256)) * 5000
    write_clear(file_source(long, ".onnx"), tmp_path / "long.onnx")
    assert (tmp_path / "long.onnx").read_bytes() == long
