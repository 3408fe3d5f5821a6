"""The readout: records read through what leaves, and how little of it a job leaves over."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks.readouts import ATTACKS, Host, Read, RefusedError, cfg, main, one_pixel, parameters
from cli.world import CFG, World, call, textures, tree, write_idx
from plinius.data.sealed_dataset import seal_dataset
from plinius.key_file import load_key
from plinius.sources.idx import idx_source
from plinius.trust.signing import SigningKey

LAST = 240


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signing key, sign, and its public half."""
    folder = tmp_path_factory.mktemp("owner")
    SigningKey.generate().save(folder / "sign")
    return folder


def sign(world: World, owner: Path, cfg_path: Path, *more: object) -> list[object]:
    """The options of a default job for a cfg, on the small world's data."""
    job = owner / f"{len([*owner.iterdir()])}.job"
    data = ["--data", world.data, "--test", world.held_out, "--key", world.key]
    made = call("job", "create", cfg_path, *data, "--sign", owner / "sign", "-o", job, *more)
    assert made.code == 0, made.stderr
    return ["--job", job, "--owner", owner / "sign.pub"]


@pytest.fixture(scope="module")
def long_cfg(owner: Path) -> Path:
    """The small network, for more iterations."""
    path = owner / "long.cfg"
    path.write_text(CFG.replace("max_batches=24", f"max_batches={LAST}"))
    return path


@pytest.fixture(scope="module")
def job(world: World, owner: Path, long_cfg: Path) -> list[object]:
    """The options of a default job for the small network."""
    return sign(world, owner, long_cfg)


each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))


@each_attack
def test_without_a_job_the_host_reads_the_records(
    world: World, tmp_path: Path, attack: Callable[[Host], Read]
) -> None:
    """Every value it went for, exactly: this release does not prevent it without a job."""
    read, true = attack(Host(world, tmp_path))
    assert read == true
    assert len(read) > 0


@each_attack
def test_under_a_default_job_the_same_host_gets_no_number(
    world: World, tmp_path: Path, job: list[object], attack: Callable[[Host], Read]
) -> None:
    """Refused before a region is made; no file with metrics appears."""
    with pytest.raises(RefusedError, match="The job does not allow") as refused:
        attack(Host(world, tmp_path, job))
    assert not re.search(r"loss is \S*\d", str(refused.value))
    assert {Path(name).suffix for name in tree(tmp_path)} <= {"", ".weights"}


def test_the_attacks_run_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """One of them says what it tries, what it read, and how a job refused it."""
    main("softmax")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said[0].startswith("labels through softmax: Batch 1 and zero weights")
    assert said[1] == "  without a job: 40 of 40 secret values read"
    assert "The job does not allow the recipe in " in said[2]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--seed", 1], "seed 1, only: 0"),
        (["--precision", "bf16"], "precision bf16, only: fp32"),
        (["--iterations", LAST + 1], f"{LAST + 1} iterations, only: at most {LAST}"),
        (["--dataset-id", "0" * 32], f"training on dataset {'0' * 32}, only: dataset "),
    ],
)
def test_the_owners_recipe_with_other_settings_is_refused(
    world: World,
    tmp_path: Path,
    job: list[object],
    long_cfg: Path,
    more: list[object],
    sentence: str,
) -> None:
    """Seed, precision, more iterations, another dataset."""
    with pytest.raises(RefusedError, match=re.escape(f"does not allow {sentence}")):
        Host(world, tmp_path, job).train(long_cfg, tmp_path / "r", *more)
    assert tree(tmp_path) == {}


def test_other_data_and_other_parameters_are_refused(
    world: World, owner: Path, tmp_path: Path, job: list[object], long_cfg: Path
) -> None:
    """Another sealed dataset of the owner, starting parameters, and the lack of those wanted."""
    using = ["--region", tmp_path / "r", "--key", world.key, "--threads", 1, *job]
    other = call("train", long_cfg, "--data", world.held_out, *using)
    assert (other.code, other.stdout) == (1, "")
    assert "not dataset" in other.stderr
    own = Host(world, tmp_path, job)
    start = own.file(parameters(one_pixel(), 2), ".weights")
    network = own.file(cfg(batch=8))
    only_with = sign(world, owner, network, "--weights", start)
    for options, more in ((only_with, []), (sign(world, owner, network), ["--weights", start])):
        with pytest.raises(RefusedError, match="does not allow starting parameters"):
            Host(world, tmp_path, options).train(network, tmp_path / "r", *more)
    assert not (tmp_path / "r").exists()
    Host(world, tmp_path, only_with).train(network, tmp_path / "r", "--weights", start)


def test_a_recipe_that_reads_one_record_is_not_signed(
    world: World, owner: Path, tmp_path: Path
) -> None:
    """Batch 1 is below the default minimum, so an owner does not sign it by mistake."""
    network = tmp_path / "own.cfg"
    network.write_text(cfg())
    refused = call(
        *("job", "create", network, "--data", world.data, "--key", world.key),
        *("--sign", owner / "sign", "-o", tmp_path / "job"),
    )
    assert (refused.code, refused.stdout) == (1, "")
    assert "The job does not allow a batch of 1, only: at least 8." in refused.stderr
    assert not (tmp_path / "job").exists()


def leaving(text: str) -> list[float]:
    """The numbers in metrics that are not the host's own observations."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [line[name] for line in lines for name in ("loss", "average_loss") if line[name]]


def test_what_leaves_under_a_default_job_is_below_the_stated_bits(
    world: World, owner: Path, tmp_path: Path
) -> None:
    """Even of a readout that the owner signed: 4 means in 480 iterations, 42 bits of 320 pixels."""
    host = Host(world, tmp_path)
    start = host.file(parameters(one_pixel(), 2), ".weights")
    network = host.file(cfg(batch=8, subdivisions=8, iterations=480))
    host.job = sign(world, owner, network, "--weights", start)
    said = call("job", "show", host.job[1], "--json").json
    metrics = tmp_path / "metrics"
    more = ["--weights", start, "--metrics", metrics, "--mirror-every", 480]
    result = host.train(network, tmp_path / "r", *more)
    numbers = leaving(metrics.read_text())
    assert len(numbers) == 4
    assert all(number == round(number, 2) and 0 <= number <= 10 for number in numbers)
    assert (result["loss"], result["average_loss"]) == (None, None)
    bits = 4 * math.log2(10 * 100 + 1) + math.log2(101) + math.log2(3 * 480 + 1)
    assert said["bits_of_a_run"] == pytest.approx(bits, abs=0.1)
    assert said["bits_per_iteration"] == pytest.approx(bits / 480, abs=1e-3)
    assert bits < 64 < 320 * math.log2(256)


def test_a_signed_readout_of_batch_1_gives_no_loss_between_releases(
    world: World, owner: Path, tmp_path: Path
) -> None:
    """Fewer iterations than one mean has: none leaves, however often the run is stopped."""
    host, metrics, answers = Host(world, tmp_path), tmp_path / "metrics", []
    start, network = host.file(parameters(one_pixel(), 2), ".weights"), host.file(cfg())
    host.job = sign(world, owner, network, "--weights", start, "--minimum-batch", 1)
    for at in range(1, 6):
        more = ["--weights", start, "--metrics", metrics, "--iterations", at]
        answers.append(host.train(network, tmp_path / "r", *more))
    assert {(answer["loss"], answer["average_loss"]) for answer in answers} == {(None, None)}
    assert leaving(metrics.read_text()) == []
    assert len(metrics.read_text().splitlines()) == 5


def test_a_loss_that_is_not_finite_ends_a_run_without_its_value(
    world: World, owner: Path, tmp_path: Path
) -> None:
    """Under a job the sentence is the same whatever made it infinite; the stop counts."""
    host = Host(world, tmp_path)
    network, said = host.file(cfg(batch=8)), set()
    for scale in (3e38, -3e38, 2e38):
        start = host.file(parameters(one_pixel(scale), 2), ".weights")
        host.job = sign(world, owner, network, "--weights", start)
        with pytest.raises(RefusedError, match="The loss is not finite at iteration 1") as refused:
            host.train(network, host.region(), "--weights", start)
        said.add(str(refused.value))
    assert len(said) == 1


def test_stopping_at_every_iteration_gives_nothing_more(
    world: World, tmp_path: Path, job: list[object], long_cfg: Path
) -> None:
    """A run that is stopped 24 times lets the same two means leave as one that is not."""
    host, metrics = Host(world, tmp_path, job), [tmp_path / "whole", tmp_path / "stopped"]
    host.train(long_cfg, tmp_path / "r", "--metrics", metrics[0])
    answers = [
        host.train(long_cfg, tmp_path / "s", "--metrics", metrics[1], "--iterations", at)
        for at in range(10, LAST + 1, 10)
    ]
    whole, stopped = (leaving(path.read_text()) for path in metrics)
    assert whole == stopped
    assert len(whole) == LAST // 100
    told = [answer["loss"] for answer in answers if answer["loss"] is not None]
    assert told == whole
    assert {answer["average_loss"] for answer in answers} == {None}


def test_the_terminal_line_and_tensorboard_show_no_more(
    world: World, tmp_path: Path, job: list[object], long_cfg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two points of loss in TensorBoard, and a dash on the terminal where no loss leaves."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    monkeypatch.setattr("plinius.cli.train_progress.is_terminal", lambda: True)
    w = world
    what = ["--data", w.data, "--region", tmp_path / "r", "--key", w.key, "--threads", 1]
    shown = call("train", long_cfg, *what, "--tensorboard", tmp_path / "board", *job).stderr
    seen = set(re.findall(r"loss (\S+)\s+average (\S+)\s+rate", shown))
    assert ("-", "-") in seen
    assert all(average == "-" for _, average in seen)
    board = event_accumulator.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert len(board.Scalars("loss")) == LAST // 100
    assert "average_loss" not in board.Tags()["scalars"]
    assert len(board.Scalars("rate")) == LAST


def test_outputs_leave_at_the_end_only_and_rounded(
    world: World, tmp_path: Path, job: list[object], long_cfg: Path
) -> None:
    """Accuracy at the last iteration, on the test dataset, in hundredths; nothing else ever."""
    host, region = Host(world, tmp_path, job), tmp_path / "r"
    using = ["--region", region, "--key", world.key]
    at_the_end = f"at iteration 8, only: one at iteration {LAST}"
    host.train(long_cfg, region, "--iterations", 8)
    with pytest.raises(RefusedError, match=at_the_end):
        host.command("test", long_cfg, "--data", world.held_out, *using)
    host.train(long_cfg, region)
    accuracy = host.command("test", long_cfg, "--data", world.held_out, *using)["accuracy"]
    assert accuracy == round(accuracy, 2)
    for what, sentence in (
        (["test", long_cfg, "--data", world.data], "does not allow testing on dataset"),
        (["digest"], "does not allow the output 'digest', only: accuracy"),
        (["export", "-o", tmp_path / "x.safetensors"], "does not allow exporting 'model'"),
        (["export", long_cfg, "-o", tmp_path / "x.weights"], "does not allow exporting 'model'"),
    ):
        with pytest.raises(RefusedError, match=sentence):
            host.command(*what, *using)
    bare = Host(world, tmp_path)
    for command in (["digest"], ["export", "-o", tmp_path / "x.safetensors"]):
        with pytest.raises(RefusedError, match="This run belongs to job"):
            bare.command(*command, *using)
    assert not [*tmp_path.glob("x.*")]


def test_a_run_of_no_job_tells_nothing_under_one(
    world: World, trained: Path, owner: Path, tmp_path: Path
) -> None:
    """The host cannot bring the state of another run under the job that allows its output."""
    host = Host(world, tmp_path, sign(world, owner, world.cfg, "--allow", "digest"))
    with pytest.raises(RefusedError, match="This run belongs to no job, not to job"):
        host.command("digest", "--region", trained, "--key", world.key)


def test_the_size_of_a_commit_says_nothing_of_the_losses(
    world: World, owner: Path, tmp_path: Path
) -> None:
    """The same job on other records: each commit has the same number of bytes, without it not."""
    x, y = textures(320, seed=9)
    for name, array in (("x", x), ("y", y)):
        write_idx(tmp_path / name, array)
    other = tmp_path / "other.sealed"
    source = idx_source(tmp_path / "x", tmp_path / "y", 4)
    seal_dataset(source, load_key(world.key), other)
    sizes: dict[str, list[list[int]]] = {"job": [], "bare": []}
    for at, data in enumerate((world.data, other)):
        job_file = owner / f"size-{at}.job"
        made = ["--data", data, "--key", world.key, "--sign", owner / "sign", "-o", job_file]
        assert call("job", "create", world.cfg, *made).code == 0
        for kind, options in {
            "job": ["--job", job_file, "--owner", owner / "sign.pub"],
            "bare": [],
        }.items():
            metrics = tmp_path / f"{kind}-{at}"
            what = ["--data", data, "--region", tmp_path / f"r-{kind}-{at}", "--key", world.key]
            run = ["--threads", 1, "--metrics", metrics, *options]
            assert call("train", world.cfg, *what, *run).code == 0
            lines = metrics.read_text().splitlines()
            sizes[kind].append([json.loads(line)["mirror_bytes"] for line in lines])
    assert sizes["job"][0] == sizes["job"][1]
    assert sizes["bare"][0] != sizes["bare"][1]
