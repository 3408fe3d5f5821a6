"""The bytes of tensors on devices, with the host standing for a device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plinius.mirror import Mirror
from plinius.state import devices
from plinius.state.devices import DeviceTensor, HostCopies
from unit.mirroring import KEY, Loop

CPU = torch.device("cpu")


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor goes the way that those of a GPU go; blocks and small tensors are tiny."""
    for module in ("devices", "restore"):
        monkeypatch.setattr(f"plinius.state.{module}.is_on_host", lambda tensor: False)
    monkeypatch.setattr(devices, "SMALL_BYTES", 40)
    monkeypatch.setattr(devices, "BLOCK_WORDS", 32)


def copied(copies: HostCopies, tensors: dict[str, torch.Tensor]) -> tuple[list[Any], list[Any]]:
    """What the copies are of these tensors now, and their versions."""
    made, versions = copies.of([DeviceTensor.of(it, name) for name, it in tensors.items()])
    return made, versions


def examples() -> dict[str, torch.Tensor]:
    """Tensors of many dtypes, lengths and orders in memory."""
    torch.manual_seed(5)
    whole = torch.randn(9, 50)
    return {
        "float32": torch.randn(3, 70),
        "odd": torch.arange(0, 155, dtype=torch.uint8),
        "unaligned": torch.arange(0, 200, dtype=torch.uint8)[3:],
        "bfloat16": torch.randn(77).bfloat16(),
        "bool": torch.rand(130) > 0.5,
        "complex": torch.randn(41, dtype=torch.complex64).conj(),
        "columns": whole[:, ::2],
        "turned": torch.randn(8, 9).t(),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "float8": torch.randn(64).to(torch.float8_e4m3fn),
    }


def bytes_now(tensors: dict[str, torch.Tensor]) -> list[bytes]:
    """Their items in the order of memory."""
    return [
        devices.packed(it, devices.order_of(it)).reshape(-1).view(torch.uint8).numpy().tobytes()
        for it in tensors.values()
    ]


@pytest.mark.usefixtures("on_device")
def test_copies_hold_the_bytes_of_the_moment() -> None:
    """Also after some, all and none of the tensors changed, and after others came."""
    tensors, copies = examples(), HostCopies(CPU)
    for change in (
        lambda: None,
        lambda: tensors["odd"].add_(1),
        lambda: None,
        lambda: tensors["float32"].data.mul_(2),
        lambda: tensors.pop("columns"),
    ):
        change()
        made, _ = copied(copies, tensors)
        assert [bytes(it.data) for it in made] == bytes_now(tensors)
        assert [it.name for it in made] == [*tensors]


@pytest.mark.usefixtures("on_device")
def test_a_version_stays_only_if_no_byte_changed() -> None:
    """One bit anywhere in a large tensor gives another version; nothing else does."""
    tensors, copies = {"a": torch.zeros(301), "b": torch.zeros(555)}, HostCopies(CPU)
    _, before = copied(copies, tensors)
    assert copied(copies, tensors)[1] == before
    for byte in (0, 127, 128, 1203):
        tensors["a"].numpy().view(np.uint8)[byte] ^= 64
        _, after = copied(copies, tensors)
        assert after[0] != before[0]
        assert after[1] == before[1]
        before = after


@pytest.mark.usefixtures("on_device")
def test_only_what_changed_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen tensor is fingerprinted on its device, and not copied out again."""
    tensors, copies = {"frozen": torch.zeros(999), "trained": torch.zeros(50)}, HostCopies(CPU)
    copied(copies, tensors)
    sizes: list[int] = []
    copy_out = devices.Device.copy_out

    def counted(self: devices.Device, pairs: Any) -> None:
        sizes.extend(source.numel() for source, _ in pairs)
        copy_out(self, pairs)

    monkeypatch.setattr(devices.Device, "copy_out", counted)
    tensors["trained"].add_(1)
    copied(copies, tensors)
    assert sizes == [200]


@pytest.mark.usefixtures("on_device")
def test_an_interrupted_copy_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was copied until then, the next call gives the bytes of then."""
    tensors, copies = {"a": torch.zeros(99), "b": torch.zeros(99)}, HostCopies(CPU)
    copied(copies, tensors)
    with monkeypatch.context() as patch:

        def stopped(self: devices.Device, pairs: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(devices.Device, "copy_out", stopped)
        tensors["a"].add_(1)
        with pytest.raises(KeyboardInterrupt):
            copied(copies, tensors)
    made, _ = copied(copies, tensors)
    assert [bytes(it.data) for it in made] == bytes_now(tensors)


@pytest.mark.parametrize(
    "how",
    [{}, {"overlap": True}, {"trust_versions": True}, {"overlap": True, "only_steps_write": True}],
)
@pytest.mark.usefixtures("on_device")
def test_a_run_on_a_device_resumes(how: dict[str, Any], tmp_path: Path) -> None:
    """From every iteration, with the digest of the run that was never stopped."""
    whole = Loop()
    with Mirror.open(tmp_path / "whole.region", KEY, whole.state, **how) as mirror:
        for iteration in range(1, 7):
            whole.step()
            mirror.mirror_out(iteration)
        wanted = mirror.digest(6)
    for iteration in range(1, 7):
        run = Loop()
        with Mirror.open(tmp_path / "run.region", KEY, run.state, **how) as mirror:
            assert mirror.mirror_in() == iteration - 1
            assert mirror.not_bit_exact is None
            run.step()
            mirror.mirror_out(iteration)
            last = mirror.digest(6)
    assert last == wanted


def test_tensors_of_a_device_come_back_to_where_the_run_has_it_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a GPU that this machine has not goes on, and says that it is not bit-exact."""
    run = Loop()
    with Mirror.open(tmp_path / "run.region", KEY, run.state) as mirror:
        run.step()
        captured = mirror._state.capture()
        there = [["cuda:0", len(captured.tensors)]]
        environment = {**captured.environment, "devices": there, "cuda:0": "a GPU"}
        captured = captured._replace(environment=environment)
        monkeypatch.setattr(mirror._state, "capture", lambda **_: captured)
        mirror.mirror_out(1)
    other = Loop()
    with Mirror.open(tmp_path / "run.region", KEY, other.state) as mirror:
        assert mirror.mirror_in() == 1
        assert "cuda:0 was a GPU and is unknown" in str(mirror.not_bit_exact)
        assert mirror._state.capture().tensors[0].data == captured.tensors[0].data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("how", [{}, {"overlap": True}, {"trust_versions": True}])
def test_a_run_on_a_gpu_resumes(how: dict[str, Any], tmp_path: Path) -> None:
    """Model, AdamW, scaler and the GPU's random numbers, from every iteration, bit for bit."""

    def built() -> tuple[dict[str, Any], Any]:
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(300, 300), torch.nn.Dropout(0.2), torch.nn.Linear(300, 9)
        ).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cuda")

        def step() -> None:
            with torch.autocast("cuda", torch.float16):
                loss = model(torch.randn(64, 300, device="cuda")).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

        return {"model": model, "optimizer": optimizer, "scaler": scaler}, step

    state, step = built()
    with Mirror.open(tmp_path / "whole.region", KEY, state, **how) as mirror:
        for iteration in range(1, 6):
            step()
            mirror.mirror_out(iteration)
        wanted = mirror.digest(5)
    for iteration in range(1, 6):
        state, step = built()
        with Mirror.open(tmp_path / "run.region", KEY, state, **how) as mirror:
            assert mirror.mirror_in() == iteration - 1
            step()
            mirror.mirror_out(iteration)
            last = mirror.digest(5)
    assert last == wanted
