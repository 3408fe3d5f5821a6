"""Parameters in and out of .safetensors files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plinius.errors import FormatError, MismatchError, StateError, StorageError
from plinius.mirror import Mirror
from plinius.slots import newest_snapshot
from plinius.snapshot import Snapshot
from plinius.training.safetensors_files import export_safetensors, import_safetensors
from unit.mirroring import KEY, Loop, Net


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """What a loop mirrored."""
    loop = Loop()
    loop.step()
    with Mirror.open(tmp_path / "r", KEY, loop.state) as mirror:
        mirror.mirror_out(1)
    return newest_snapshot(tmp_path / "r", KEY)


def test_a_model_goes_out_and_into_another(snapshot: Snapshot, tmp_path: Path) -> None:
    """By the names of its state_dict, a tied tensor once; others can read the file."""
    path = tmp_path / "net.safetensors"
    count = export_safetensors(snapshot, "model", path, {"iteration": "1"})
    read = load_file(path)
    assert count == len(read)
    assert {*read} == {*Net().state_dict()} - {"head.weight"}
    model = Net()
    with torch.no_grad():
        model.frozen.weight.zero_()
    import_safetensors(model, path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in read.items())
    assert model.head.weight is model.embedding.weight


def test_any_part_that_has_tensors_goes_out(snapshot: Snapshot, tmp_path: Path) -> None:
    """The moments of an optimizer, for one."""
    export_safetensors(snapshot, "optimizer", tmp_path / "o.safetensors")
    assert "state/0/exp_avg" in load_file(tmp_path / "o.safetensors")


def test_a_part_that_is_not_there_is_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    """With the names of those that are."""
    with pytest.raises(
        MismatchError,
        match=r"no tensors in net\. Name one of its parts \(--part\): model, optimizer",
    ):
        export_safetensors(snapshot, "net", tmp_path / "x.safetensors")


def test_a_dtype_that_the_format_has_not_is_refused(tmp_path: Path) -> None:
    """complex128, for one; no file is left."""
    state = {"model": {"t": torch.zeros(3, dtype=torch.complex128)}}
    with Mirror.open(tmp_path / "r", KEY, state) as mirror:
        mirror.mirror_out(1)
    taken = newest_snapshot(tmp_path / "r", KEY)
    with pytest.raises(StateError, match="cannot be written to a .safetensors file"):
        export_safetensors(taken, "model", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100, (2**40).to_bytes(8, "little")])
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Also one whose header claims a huge length."""
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match="x.safetensors is not a .safetensors file"):
        import_safetensors(Net(), tmp_path / "x.safetensors")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(StorageError, match="Cannot read .*none.safetensors: No such file"):
        import_safetensors(Net(), tmp_path / "none.safetensors")


def test_tensors_that_do_not_fit_change_nothing(snapshot: Snapshot, tmp_path: Path) -> None:
    """A name too few, another shape, another dtype: the first is named."""
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = {n: t.clone() for n, t in before.items() if n != "head.weight"}
    for name, other, sentence in (
        ("norm.bias", None, r"model/norm.bias is missing there and float32\[8\] here"),
        ("norm.bias", torch.zeros(9), r"model/norm.bias is float32\[9\] there"),
        ("norm.bias", torch.zeros(8).half(), r"model/norm.bias is float16\[8\] there"),
        ("extra", torch.zeros(1), r"model/extra is float32\[1\] there and missing here"),
    ):
        changed = {**whole, name: other}
        path = tmp_path / "x.safetensors"
        save_file({n: t for n, t in changed.items() if t is not None}, path)
        with pytest.raises(MismatchError, match=sentence):
            import_safetensors(model, path)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
