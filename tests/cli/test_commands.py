"""The way a user goes, command after command, with real processes where that matters."""

import io
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cli.world import (
    CFG,
    CLASSES,
    HELD_OUT,
    ITERATIONS,
    PLINIUS,
    RECORDS,
    SIDE,
    Result,
    World,
    call,
    checked,
    digest_of,
    run,
    textures,
    tree,
)
from plinius.darknet.cfg import read_cfg
from plinius.darknet.network import Network
from plinius.darknet.weights import load_weights
from plinius.key_file import load_key
from plinius.slots import newest_snapshot

LONG = 120


@pytest.fixture(scope="module")
def walk(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What every command of the README's way said, each in a process of its own."""
    home = tmp_path_factory.mktemp("walk")
    cfg, region, sealed = home / "long.cfg", home / "run.region", home / "train.sealed"
    cfg.write_text(CFG.replace("max_batches=24", f"max_batches={LONG}"))
    key, weights = home / "owner.key", home / "net.weights"
    pair = ["--images", world.images, "--labels", world.labels, "--classes", CLASSES]
    held = world.folder / "held-images.idx", world.folder / "held-labels.idx"
    using = ["--region", region, "--key", key]
    metrics = ["--metrics", home / "metrics.jsonl", "--threads", 1]
    said: dict[str, Result] = {"home": Result(0, str(home), "")}
    for name, arguments in {
        "keygen": ["keygen", "-o", key],
        "seal": ["seal", "--key", key, "-o", sealed, *pair],
        "seal test": [
            *("seal", "--key", key, "-o", home / "test.sealed"),
            *("--images", held[0], "--labels", held[1]),
        ],
        "inspect": ["inspect", sealed],
        "train": ["train", cfg, "--data", sealed, *using, *metrics],
        "test": ["test", cfg, "--data", home / "test.sealed", *using],
        "digest": ["digest", *using],
        "export": ["export", cfg, *using, "-o", weights],
        "info": ["region", "info", region],
        "verify": ["region", "verify", region],
        "verify with key": ["region", "verify", region, "--key", key],
    }.items():
        said[name] = run(*arguments, "--json")
    return said


def test_every_step_of_the_way_answers_one_json_object(walk: dict[str, Result]) -> None:
    """Exit 0, one JSON object on stdout, and never a traceback, from keygen to verify."""
    home = Path(walk["home"].stdout)
    key_id = walk["keygen"].json["key_id"]
    assert walk["keygen"].json == {"key": str(home / "owner.key"), "key_id": key_id}
    shape: dict[str, Any] = {
        "bytes": (home / "train.sealed").stat().st_size,
        "count": RECORDS,
        "sample": ["uint8", [1, SIDE, SIDE]],
        "label": ["uint8", []],
        "classes": CLASSES,
    }
    sealed = walk["seal"].json
    x, y = textures(RECORDS, seed=1)
    assert sealed == {
        "sealed": str(home / "train.sealed"),
        "id": sealed["id"],
        **shape,
        "labels": {str(n): int((y == n).sum()) for n in range(CLASSES)},
        "values": {
            "min": float(x.min()),
            "mean": pytest.approx(x.mean()),
            "std": pytest.approx(x.std()),
            "max": float(x.max()),
        },
    }
    assert walk["inspect"].json == {
        "kind": "sealed dataset",
        "version": 1,
        "id": sealed["id"],
        "key_id": key_id,
        "salt": walk["inspect"].json["salt"],
        "record_bytes": SIDE * SIDE + 1,
        **shape,
    }
    trained = walk["train"].json
    assert (trained["iteration"], trained["resumed_at"], trained["done"]) == (LONG, 0, True)
    assert 0 < trained["average_loss"] < 1
    digest = walk["digest"].json
    assert digest["iteration"] == LONG
    assert re.fullmatch("[0-9a-f]{64}", digest["digest"])


def test_a_trained_network_classifies_held_out_records(walk: dict[str, Result]) -> None:
    """The accuracy on held-out records is far beyond the quarter that guessing would reach."""
    result = walk["test"].json
    assert (result["task"], result["samples"], result["iteration"]) == (
        "classification",
        HELD_OUT,
        LONG,
    )
    assert result["classes"] == [str(number) for number in range(CLASSES)]
    assert result["accuracy"] >= 0.9


def test_metrics_are_one_line_an_iteration(walk: dict[str, Result]) -> None:
    """The metrics file has each iteration once, in order, and nothing but the listed numbers."""
    home = Path(walk["home"].stdout)
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, LONG + 1))
    assert set(lines[0]) == {
        *("iteration", "loss", "average_loss", "rate", "seconds"),
        *("open_seconds", "mirror_seconds", "mirror_bytes", "validation"),
    }
    assert all(line["mirror_bytes"] > 0 for line in lines)
    assert lines[-1]["loss"] == walk["train"].json["loss"]


def test_messages_go_to_stderr(walk: dict[str, Result]) -> None:
    """The trainer says what the region survives and that it is done; no escape codes in a pipe."""
    said = walk["train"].stderr
    assert "The region is " in said
    assert f"Done: iteration {LONG}, mirrored." in said
    assert "\x1b" not in "".join(result.stdout + result.stderr for result in walk.values())


def test_verify_opens_everything_with_the_key_and_only_with_it(walk: dict[str, Result]) -> None:
    """Without a key the structure is checked; with it, the mirror and all records open."""
    info, bare, full = (walk[name].json for name in ("info", "verify", "verify with key"))
    assert info["kind"] == "region"
    assert (info["state"], info["twins_equal"]) == ("IDLE", True)
    assert set(info["extents"]) == {"dataset", "mirror"}
    assert info["mirror"]["commits"] == LONG
    assert bare == {"ok": True, **info}
    assert full == {**bare, "mirror_opens": LONG, "records_open": RECORDS}


def test_exported_weights_load_back(walk: dict[str, Result]) -> None:
    """A .weights file holds the mirrored parameters and the number of records seen."""
    home = Path(walk["home"].stdout)
    assert walk["export"].json == {
        "exported": str(home / "net.weights"),
        "iteration": LONG,
        "seen": LONG * 8,
    }
    assert "in clear" in walk["export"].stderr
    network = Network(read_cfg(home / "long.cfg"), seed=5)
    assert load_weights(network, home / "net.weights") == LONG * 8
    _assert_parameters(network.state_dict(), home / "run.region", home / "owner.key")


def test_exported_safetensors_load_back(world: World, trained: Path, tmp_path: Path) -> None:
    """A .safetensors file holds the mirrored parameters under the network's own names."""
    file = tmp_path / "net.safetensors"
    result = _with(world, trained, "export", world.cfg, "-o", file, "--json")
    assert result.json == {"exported": str(file), "iteration": ITERATIONS, "seen": ITERATIONS * 8}
    _assert_parameters(load_file(file), trained, world.key)


def test_the_parameters_of_any_run_go_out_and_begin_another(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """Without a cfg; a run that begins with them is at its iteration 0 where the other ended."""
    file, region = tmp_path / "net.safetensors", tmp_path / "new.region"
    result = _with(world, trained, "export", "-o", file, "--json")
    assert result.json == {"exported": str(file), "iteration": ITERATIONS}
    call(*world.train(region, "--weights", file, "--iterations", 0))
    _assert_parameters(load_file(file), region, world.key)
    again = call(*world.train(region, "--weights", file, "--iterations", 2, "--json"))
    assert (again.code, again.json["resumed_at"], again.json["iteration"]) == (0, 0, 2)


def test_tensorboard_shows_every_iteration_once(world: World, tmp_path: Path) -> None:
    """Stopped and resumed: iterations that were repeated are shown once."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    region, board, lines = tmp_path / "r", tmp_path / "board", tmp_path / "m.jsonl"
    for until in (3, 7):
        more = ("--iterations", until, "--tensorboard", board, "--metrics", lines)
        assert call(*world.train(region, *more)).code == 0
    shown = EventAccumulator(str(board))
    shown.Reload()
    metrics = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {*shown.Tags()["scalars"]} == {*metrics[0]} - {"iteration", "validation"}
    losses = shown.Scalars("loss")
    assert [event.step for event in losses] == [*range(1, 8)]
    assert [event.value for event in losses] == pytest.approx([m["loss"] for m in metrics])


def test_rerunning_a_finished_run_says_so(world: World, trained: Path, tmp_path: Path) -> None:
    """The same command after the end trains nothing, says it is done, and exits 0."""
    region, metrics = tmp_path / "run.region", tmp_path / "m.jsonl"
    shutil.copy(trained, region)
    before = digest_of(region, world.key)
    result = call(*world.train(region, "--json", "--metrics", metrics))
    assert result.json["resumed_at"] == result.json["iteration"] == ITERATIONS
    assert result.json["done"] is True
    assert f"Done: iteration {ITERATIONS}, mirrored." in result.stderr
    assert digest_of(region, world.key) == before
    assert metrics.read_text() == ""


def test_results_are_readable_without_json(world: World, trained: Path) -> None:
    """Without --json a result is a line for each of its parts, names first."""
    result = _with(world, trained, "digest")
    assert result.code == 0
    digest = digest_of(trained, world.key)
    assert result.stdout == f"digest     {digest}\niteration  {ITERATIONS}\n"


def test_commands_that_only_read_change_nothing(world: World, trained: Path) -> None:
    """inspect, info, verify, digest, test, export and doctor leave the region as it was."""
    before = trained.read_bytes(), trained.stat().st_mtime_ns
    trained.chmod(0o400)
    try:
        for result in (
            call("inspect", trained),
            call("region", "info", trained),
            call("region", "verify", trained, "--key", world.key),
            _with(world, trained, "digest"),
            _with(world, trained, "test", world.cfg, "--data", world.held_out),
            call("doctor", trained),
        ):
            assert result.code == 0, result.stderr
    finally:
        trained.chmod(0o600)
    assert (trained.read_bytes(), trained.stat().st_mtime_ns) == before


def test_inspect_and_info_agree_on_a_region(trained: Path) -> None:
    """inspect knows a region by its first bytes and shows what region info shows."""
    assert call("inspect", trained, "--json").json == call("region", "info", trained, "--json").json


def test_a_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """keygen writes mode 0600 whatever the umask, shows only the key's id, and no two are alike."""
    umask = os.umask(0)
    try:
        result = [call("keygen", "-o", tmp_path / name, "--json") for name in ("a.key", "b.key")]
    finally:
        os.umask(umask)
    for made, name in zip(result, ("a.key", "b.key"), strict=True):
        path = tmp_path / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert made.json["key_id"] == load_key(path).id.hex()
        secret = path.read_text().split()[-1]
        assert len(secret) == 64
        assert secret not in made.stdout + made.stderr
    assert result[0].json["key_id"] != result[1].json["key_id"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["keygen"],
        ["train"],
        ["train", "a.cfg", "--data", "d", "--region", "r", "--key", "k", "--seed", "-1"],
        ["train", "a.cfg", "--data", "d", "--region", "r", "--key", "k", "--threads", "0"],
        ["train", "a.cfg", "--data", "d", "--region", "r", "--key", "k", "--mirror-every", "0"],
        ["train", "a.cfg", "--data", "d", "--region", "r", "--key", "k", "--precision", "fp8"],
        ["train", "a.cfg", "--data", "d", "--region", "r", "--key", "k", "--iterations", "x"],
        ["digest", "--region", "r"],
        ["region", "info"],
        ["inspect", "a", "b"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_wrong_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    """A command that cannot be read is answered on stderr with exit 2; nothing is made."""
    result = checked(_at(tmp_path, arguments))
    assert result.code == 2
    assert "Usage: " in result.stderr
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--format idx needs --images and --labels"),
        (["--format", "npz"], "--format npz needs --npz"),
        (["--format", "folder"], "--format folder needs --folder"),
        (["--npz", "a", "--folder", "b"], "name one source: --images and --labels, --npz, "),
        (["--images", "a", "--npz", "b"], "name one source: --images and --labels, --npz, "),
        (["--images", "a", "--skip-bytes", "4"], "goes with --format plinius"),
        (["--labels", "a", "--legacy-key", "00" * 16], "goes with --format plinius"),
        (["--format", "plinius", "--labels", "a", "--legacy-key", "zz"], "--legacy-key is 32 hex"),
    ],
)
def test_sealing_names_one_source(
    world: World, tmp_path: Path, options: list[str], sentence: str
) -> None:
    """Options of seal that do not go together exit 2 with the reason, and make nothing."""
    result = call("seal", "--key", world.key, "-o", tmp_path / "o", *options)
    assert result.code == 2
    assert sentence in result.stderr
    assert tree(tmp_path) == {}


def test_export_knows_three_suffixes(world: World, trained: Path, tmp_path: Path) -> None:
    """Another suffix is wrong usage."""
    result = _with(world, trained, "export", world.cfg, "-o", tmp_path / "net.pt")
    assert result.code == 2
    assert "-o ends in .weights, .safetensors or .onnx" in result.stderr
    assert tree(tmp_path) == {}


def test_help_and_version_are_data() -> None:
    """Help of every command and the version go to stdout and exit 0."""
    assert call("--version").stdout.startswith("plinius, version ")
    for command in ("", "keygen", "seal", "inspect", "train", "test", "digest", "export"):
        result = call(*command.split(), "--help")
        assert result.code == 0
        assert result.stdout.startswith("Usage: ")
        assert result.stderr == ""


def test_a_closed_pipe_ends_without_a_traceback(world: World, trained: Path) -> None:
    """A reader that goes away is no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(PLINIUS), "digest", "--region", str(trained), "--key", str(world.key)]
    with os.fdopen(writer, "wb") as out:
        ended = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr


def _with(world: World, region: Path, *arguments: object) -> Result:
    return call(*arguments, "--region", region, "--key", world.key)


def _at(folder: Path, arguments: list[str]) -> Result:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return call(*arguments)
    finally:
        os.chdir(before)


def _assert_parameters(found: dict[str, torch.Tensor], region: Path, key: Path) -> None:
    stored = {t.name: t for t in newest_snapshot(region, load_key(key)).tensors}
    mirrored = {name for name in stored if name.startswith("model/")}
    assert {f"model/{name}" for name in found} == mirrored
    for name, tensor in found.items():
        bits = io.BytesIO(stored[f"model/{name}"].row_major()).getvalue()
        assert tensor.contiguous().numpy().tobytes() == bits, name


def test_a_key_under_a_passphrase_works_in_every_command(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """keygen seals it, seal and open take it; with another passphrase nothing is made."""
    monkeypatch.setenv("PLINIUS_PASSPHRASE", "correct horse")
    key, out = tmp_path / "k", tmp_path / "o.sealed"
    assert call("keygen", "-o", key, "--passphrase", "--json").code == 0
    pair = ["--images", world.images, "--labels", world.labels]
    assert call("seal", "--key", key, "-o", out, *pair).code == 0
    monkeypatch.setenv("A_KEY", key.read_text())
    assert call("open", out, "--key", "env:A_KEY", "-o", tmp_path / "o.npz").code == 0
    monkeypatch.setenv("PLINIUS_PASSPHRASE", "battery staple")
    refused = call("open", out, "--key", key, "-o", tmp_path / "p.npz")
    assert refused.code == 1
    assert "does not open with this passphrase. Try again" in refused.stderr
    assert not (tmp_path / "p.npz").exists()
