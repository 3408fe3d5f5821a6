"""`job create`, `job show`, `job verify`, and the commands that work under a job."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from cli.world import ITERATIONS, Result, World, call, run, tree
from plinius.darknet.cfg import read_cfg
from plinius.darknet.recipe import recipe_digest
from plinius.trust.signing import SigningKey, load_signer

ASK = "Do what the job says (plinius job show), or ask its owner for another job."


class Owner:
    """A signing key in a folder, and the small world's data."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        SigningKey.generate().save(folder / "sign")
        self.public = folder / "sign.pub"

    def create(self, name: str, *more: object) -> Result:
        """Run `job create` for the small cfg."""
        w = self.world
        data = ["--data", w.data, "--test", w.held_out, "--key", w.key]
        signing = ["--sign", self.folder / "sign", "-o", self.folder / name]
        return call("job", "create", w.cfg, *data, *signing, *more)

    def options(self, name: str) -> list[object]:
        """The options that put a command under that job."""
        return ["--job", self.folder / name, "--owner", self.public]


@pytest.fixture
def owner(world: World, tmp_path: Path) -> Owner:
    """An owner with a new signing key."""
    (tmp_path / "owner").mkdir()
    return Owner(world, tmp_path / "owner")


def test_keygen_makes_a_signing_key_and_its_public_half(tmp_path: Path) -> None:
    """Two private files; the answer names them and the signer, and shows no secret."""
    made = call("keygen", "--signing", "-o", tmp_path / "s", "--json")
    signer = load_signer(tmp_path / "s.pub").public.hex()
    names = {"key": str(tmp_path / "s"), "public": str(tmp_path / "s.pub")}
    assert made.json == {**names, "signer": signer}
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    secret = (tmp_path / "s").read_text().split()[-1]
    assert secret not in made.stdout + made.stderr
    before = tree(tmp_path)
    assert call("keygen", "--signing", "-o", tmp_path / "s").code == 1
    assert tree(tmp_path) == before


def test_create_show_and_verify_say_the_same(owner: Owner) -> None:
    """One JSON object each: what is allowed by default, and how many bits that is at most."""
    made = owner.create("job", "--json").json
    shown = call("job", "show", owner.folder / "job", "--json").json
    verified = call("job", "verify", owner.folder / "job", "--owner", owner.public, "--json").json
    assert made == {"job": str(owner.folder / "job"), **shown}
    assert verified == {"ok": True, **shown}
    assert shown["cfg"] == recipe_digest(read_cfg(owner.world.cfg))
    expected = {
        "signer": load_signer(owner.public).public.hex(),
        "run": "any",
        "weights": "none",
        "precision": "fp32",
        "seeds": [0],
        "iterations": ITERATIONS,
        "metrics": ["loss"],
        "every": 100,
        "outputs": ["accuracy"],
        "exports": [],
        "recipients": [],
        "anchor": ["none", 1],
        "unbounded": [],
    }
    assert expected.items() <= shown.items()
    text = call("job", "show", owner.folder / "job").stdout
    assert set(shown) == {line.split()[0] for line in text.splitlines()}
    assert stat.S_IMODE((owner.folder / "job").stat().st_mode) == 0o600


def test_every_option_of_create_is_in_the_job(owner: Owner, tmp_path: Path) -> None:
    """None is dropped without a word."""
    weights = tmp_path / "w.safetensors"
    trained = tmp_path / "r"
    assert call(*owner.world.train(trained, "--iterations", 1)).code == 0
    key = ["--region", trained, "--key", owner.world.key]
    assert call("export", owner.world.cfg, *key, "-o", weights).code == 0
    made = owner.create(
        *("job", "--seed", 3, "--seed", 5, "--iterations", 7, "--precision", "bf16"),
        *("--minimum-batch", 4, "--metric", "loss", "--metric", "average_loss", "--every", 2),
        *("--records", 16, "--digits", 1, "--largest", 20, "--allow", "digest"),
        *("--export", "model", "--output-every", 2, "--run-id", "ab" * 16),
        *("--measurement", "cd" * 32, "--anchor", "tpm", "--anchor-every", 9),
        *("--weights", weights, "--validate", owner.world.held_out, "--json"),
    ).json
    expected = {
        **{"seeds": [3, 5], "iterations": 7, "precision": "bf16", "minimum_batch": 4},
        **{"metrics": ["loss", "average_loss"], "every": 2, "records": 16, "digits": 1},
        **{"largest": 20, "outputs": ["digest"], "exports": ["model"], "output_every": 2},
        **{"run": "ab" * 16, "measurements": ["cd" * 32], "anchor": ["tpm", 9]},
        "unbounded": ["model"],
    }
    assert expected.items() <= made.items()
    assert len(made["weights"]) == 64
    assert [role for role, _ in made["datasets"]] == ["train", "validate", "test"]
    nothing = owner.create("none", "--metric", "none", "--allow", "none", "--json").json
    assert (nothing["metrics"], nothing["outputs"]) == ([], [])


def test_what_a_job_allows_is_done(owner: Owner, tmp_path: Path) -> None:
    """Metrics, validation while it trains, a test, a digest and an export that the owner allows."""
    w, region, metrics = owner.world, tmp_path / "r", tmp_path / "metrics"
    allowed = ["--allow", "accuracy", "--allow", "digest", "--export", "model"]
    more = ["--metric", "loss", "--metric", "average_loss", "--every", 8, "--output-every", 10]
    assert owner.create("job", *allowed, *more, "--validate", w.held_out).code == 0
    under, using = owner.options("job"), ["--region", region, "--key", w.key]
    for until in (10, ITERATIONS):
        train = ["--metrics", metrics, "--iterations", until, *under, "--json"]
        trained = call(*w.train(region, *train))
        assert "No job" not in trained.stderr
        tested = call("test", w.cfg, "--data", w.held_out, *using, *under, "--json").json
        assert (tested["iteration"], tested["samples"]) == (until, 80)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["loss"] is not None] == [8, 16, 24]
    assert trained.json["average_loss"] == lines[-1]["average_loss"]
    assert len(call("digest", *using, *under, "--json").json["digest"]) == 64
    for name in ("net.weights", "net.safetensors"):
        export = ["export", w.cfg, *using, "-o", tmp_path / name, *under]
        assert call(*export).code == 0
        assert (tmp_path / name).stat().st_size > 0


def test_a_job_limits_predictions_and_scores(owner: Owner, tmp_path: Path) -> None:
    """Predictions only if it names them; of all scores one rounded fraction; no recalibration."""
    w = owner.world
    for name, allowed in (("with", ["--allow", "predictions"]), ("without", [])):
        assert owner.create(name, "--allow", "accuracy", *allowed).code == 0
        under, using = owner.options(name), ["--region", tmp_path / name, "--key", w.key]
        assert call(*w.train(tmp_path / name, *under)).code == 0
        output = tmp_path / f"{name}.sealed"
        predict = ["predict", w.cfg, "--data", w.held_out, *using, "-o", output]
        told = call(*predict, *under)
        assert (told.code == 0) is (name == "with") is output.exists(), told.stderr
        if name == "without":
            assert "The job does not allow the output 'predictions', only: accuracy" in told.stderr
        other = call(*predict[:-1], tmp_path / "other.sealed")
        assert other.code == 1
        assert "This run belongs to job" in other.stderr
        tested = call("test", w.cfg, "--data", w.held_out, *using, *under, "--json")
        assert {*tested.json} == {"samples", "accuracy", "iteration"}
        again = call("test", w.cfg, "--data", w.held_out, *using, *under, "--recalibrate", w.data)
        assert again.code == 1
        assert "The job does not allow recalibrating" in again.stderr


def test_a_run_goes_on_under_a_renewed_job_and_no_other(owner: Owner, tmp_path: Path) -> None:
    """The owner signs the same terms for this run alone; other terms are another run."""
    w, region = owner.world, tmp_path / "r"
    assert owner.create("first").code == 0
    train = ["--iterations", 4, *owner.options("first"), "--json"]
    run_id = call(*w.train(region, *train)).json["run_id"]
    assert owner.create("renewed", "--run-id", run_id, "--days", 60).code == 0
    assert owner.create("other", "--digits", 3).code == 0
    assert owner.create("elsewhere", "--run-id", "ab" * 16).code == 0
    before = tree(tmp_path)
    other = call(*w.train(region, *owner.options("other")))
    assert (other.code, "This is not the run in the region: job is" in other.stderr) == (1, True)
    elsewhere = call(*w.train(region, *owner.options("elsewhere")))
    assert f"holds run {run_id}, not run {'ab' * 16}" in elsewhere.stderr
    assert call(*w.train(region)).code == 1
    assert tree(tmp_path) == before
    renewed = call(*w.train(region, *owner.options("renewed"), "--json")).json
    assert (renewed["resumed_at"], renewed["iteration"]) == (4, ITERATIONS)


def test_without_a_job_train_says_once_who_chooses(world: World, tmp_path: Path) -> None:
    """One line on stderr; everything else as before."""
    said = call(*world.train(tmp_path / "r", "--iterations", 1)).stderr
    assert said.count("No job: whoever gives this command chooses what is computed") == 1
    found = call("doctor", "--json").json["what is computed"]
    assert found["protected"] is False


def test_a_job_and_its_owner_go_together(owner: Owner, tmp_path: Path) -> None:
    """One without the other is wrong usage, in every command, and nothing happens."""
    owner.create("job")
    w, using = owner.world, ["--region", tmp_path / "r", "--key", owner.world.key]
    for command in (
        w.train(tmp_path / "r"),
        ["test", w.cfg, "--data", w.held_out, *using],
        ["digest", *using],
        ["export", "-o", tmp_path / "x.safetensors", *using],
    ):
        for half in (owner.options("job")[:2], owner.options("job")[2:]):
            refused = call(*command, *half)
            assert (refused.code, refused.stdout) == (2, "")
            assert "--job and --owner go together" in refused.stderr
    assert not (tmp_path / "r").exists()


def bad_jobs(owner: Owner, folder: Path) -> dict[str, tuple[list[object], str]]:
    """Commands with a bad job, and the sentence that refuses each."""
    w, job = owner.world, owner.folder / "job"
    signer = load_signer(owner.public).public.hex()[:16]
    (folder / "host").mkdir()
    host = Owner(w, folder / "host")
    host.create("job")
    theirs = load_signer(host.public).public.hex()[:16]
    changed = folder / "changed"
    changed.write_bytes(job.read_bytes().replace(b"seeds = [0]", b"seeds = [1]"))
    shutil.copy(w.cfg, folder / "text")
    owner.create("measured", "--measurement", "ab" * 32)
    owner.create("anchored", "--anchor", "broker")
    again = "Ask the owner for the job again, as plinius job create wrote it."
    region = folder / "r"
    create = ["job", "create", w.cfg, "--data", w.data, "--key", w.key]
    create += ["--sign", owner.folder / "sign", "-o", folder / "x"]

    def train(path: Path, public: Path = owner.public) -> list[object]:
        return w.train(region, "--job", path, "--owner", public)

    return {
        "no file": (
            train(folder / "no.job"),
            f"Cannot read {folder}/no.job: No such file or directory. "
            "Check the path and its permissions.",
        ),
        "no job": (
            train(folder / "text"),
            f"{folder}/text is no signed job. Name a file made by plinius job create.",
        ),
        "changed": (train(changed), f"{changed} is not what its owner signed. {again}"),
        "changed, shown": (
            ["job", "show", changed],
            f"{changed} is not what its owner signed. {again}",
        ),
        "the host's own": (
            train(folder / "host" / "job"),
            f"{folder}/host/job names signer {theirs}, but the owner's is {signer}. "
            "Give the job of this owner, or its owner's public file (--owner).",
        ),
        "no signer": (
            train(job, job),
            f"{job} holds no signer. Name the .pub file made by plinius keygen --signing.",
        ),
        "measurements": (
            train(owner.folder / "measured"),
            "The job is for attested code only, and nothing has attested this trainer. Get the "
            "keys from the owner's broker, or ask for a job without measurements.",
        ),
        "anchor": (
            train(owner.folder / "anchored"),
            "The job needs an anchor (broker), and this trainer has none. "
            "Ask its owner for a job with another anchor, or with none.",
        ),
        "seed": (
            [*train(job), "--seed", 7],
            f"The job does not allow seed 7, only: 0. {ASK}",
        ),
        "going back": (
            [*train(job), "--from-iteration", 2],
            f"The job does not allow --from-iteration, only: a run that goes on. {ASK}",
        ),
        "another learning rate": (
            [*train(job), "--from-iteration", 2, "--set", "learning_rate=1"],
            f"The job does not allow --from-iteration, only: a run that goes on. {ASK}",
        ),
        "an empty metric": (
            [*create, "--every", 1],
            "The job does not allow a metric over 8 records, only: at least 64. " + ASK,
        ),
        "a run that is no id": (
            [*create, "--run-id", "mine"],
            "The job: run needs a run id of 32 hex digits, or any. " + again,
        ),
    }


def test_a_bad_job_is_refused_with_one_sentence_and_changes_nothing(
    owner: Owner, tmp_path: Path
) -> None:
    """Exit 1, the exact sentence, and every file as it was."""
    assert owner.create("job").code == 0
    for name, (arguments, sentence) in bad_jobs(owner, tmp_path).items():
        before = tree(tmp_path)
        refused = call(*arguments, "--json")
        assert (refused.code, refused.stdout, name) == (1, "", name)
        assert refused.stderr == f"plinius: {sentence}\n", name
        assert tree(tmp_path) == before, name


def test_an_expired_job_is_refused(owner: Owner, tmp_path: Path) -> None:
    """A process whose clock is after the expiry: by verify and by train."""
    assert owner.create("job", "--days", 1).code == 0
    late = tmp_path / "sitecustomize.py"
    late.write_text(
        "import datetime as d\n"
        "class Late(d.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None):\n"
        "        return d.datetime.fromtimestamp(4e9, tz)\n"
        "real, d.datetime = d.datetime, Late\n"
        "import plinius.trust.permit, plinius.cli.job\n"
        "d.datetime = real\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    verify = ["job", "verify", owner.folder / "job", "--owner", owner.public]
    for command in (verify, owner.world.train(tmp_path / "r", *owner.options("job"))):
        refused = run(*command, env=env)
        assert (refused.code, refused.stdout) == (1, "")
        assert "The job expired on " in refused.stderr
    assert call(*verify).code == 0
    assert not (tmp_path / "r").exists()
