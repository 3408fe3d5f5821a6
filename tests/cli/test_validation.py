"""`train --validate`: what it measures, when it stops early, and that kills change nothing."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.world import CFG, World, call, digest_of
from plinius.data.sealed_dataset import seal_dataset
from plinius.key_file import load_key
from plinius.mirror import Mirror
from plinius.slots import newest_snapshot
from plinius.sources.npz import npz_source
from plinius.trust.signing import SigningKey
from resume.test_kills import UNTIL, job_of, killer

VALIDATE_EVERY = 4


def validating(world: World, *more: object) -> list[object]:
    """The options that validate on the held-out records."""
    return ["--validate", world.held_out, "--validate-every", VALIDATE_EVERY, *more]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parameters(region: Path, world: World) -> dict[str, bytes]:
    """The parameters and moments that are mirrored in a region."""
    snapshot = newest_snapshot(region, load_key(world.key))
    return {t.name: bytes(t.data) for t in snapshot.tensors if "validation" not in t.name}


def test_a_validation_is_what_test_says_and_changes_no_training(
    world: World, trained: Path, tmp_path: Path
) -> None:
    """Each score leaves with the metrics; parameters and moments are those of a run without."""
    region, log = tmp_path / "r.region", tmp_path / "m.jsonl"
    told = call(*world.train(region, "--metrics", log, *validating(world), "--json"))
    found = {line["iteration"]: line["validation"] for line in lines(log) if line["validation"]}
    assert list(found) == [*range(VALIDATE_EVERY, 25, VALIDATE_EVERY)]
    tested = call(
        "test", world.cfg, "--data", world.held_out, "--region", region, "--key", world.key,
        "--json",
    ).json  # fmt: skip
    assert found[24]["metric"] == "accuracy"
    assert found[24]["score"] == tested["accuracy"]
    best = max(found, key=lambda at: (found[at]["score"], -at))
    assert found[24]["best_iteration"] == told.json["best"]["iteration"] == best
    assert told.json["best"]["score"] == found[best]["score"]
    kept = call(
        "test", world.cfg, "--data", world.held_out, "--region", region, "--key", world.key,
        "--commit", "best", "--json",
    ).json  # fmt: skip
    assert (kept["iteration"], kept["accuracy"]) == (best, found[best]["score"])
    assert parameters(region, world) == parameters(trained, world)
    assert f"24/24 validation accuracy {found[24]['score']:.4f}, best" in told.stderr


def test_the_best_state_is_kept_though_a_kill_came_between(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the commit of the best iteration, and before it was kept."""
    region, how = tmp_path / "r.region", validating(world, "--json")
    test = ["test", world.cfg, "--data", world.held_out, "--region", region, "--key", world.key]
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "keep", lambda *_: True)
        first = call(*world.train(region, "--iterations", VALIDATE_EVERY, *how))
    assert first.json["best"]["iteration"] == VALIDATE_EVERY
    assert call(*test, "--commit", "best").code == 1
    call(*world.train(region, "--iterations", VALIDATE_EVERY, *how))
    assert call(*test, "--commit", "best", "--json").json["iteration"] == VALIDATE_EVERY


def test_training_stops_early_and_goes_on_with_more_patience(world: World, tmp_path: Path) -> None:
    """At a rate of 0 no validation is better than the first. That a run stopped is no refusal."""
    cfg, region = tmp_path / "still.cfg", tmp_path / "r.region"
    cfg.write_text(CFG.replace("rate=0.1", "rate=0").replace("batch_normalize=1", ""))
    command = ["train", cfg, *world.train(region, *validating(world, "--json"))[2:]]
    first = call(*command, "--patience", 2)
    assert (first.json["iteration"], first.json["done"]) == (12, True)
    assert first.json["stopped_early"]
    assert first.json["best"]["iteration"] == VALIDATE_EVERY
    assert "Stopped early: 2 validations were no better than the accuracy of" in first.stderr
    again = call(*command, "--patience", 2)
    assert (again.json["iteration"], again.json["resumed_at"]) == (12, 12)
    assert call(*command, "--patience", 3).json["iteration"] == 16
    whole = call(*command)
    assert (whole.json["iteration"], whole.json["stopped_early"]) == (24, False)
    straight = tmp_path / "straight.region"
    call("train", cfg, *world.train(straight, *validating(world))[2:])
    assert digest_of(region, world.key) == digest_of(straight, world.key)


def test_another_validation_dataset_begins_the_history_anew(world: World, tmp_path: Path) -> None:
    """Scores of two datasets are not compared; without one, the history waits."""
    region = tmp_path / "r.region"
    assert call(*world.train(region, *validating(world), "--iterations", 8)).code == 0
    assert call(*world.train(region, "--iterations", 12)).code == 0
    kept = call(*world.train(region, *validating(world), "--iterations", 16, "--json")).json["best"]
    assert kept["iteration"] <= 16
    other = ["--validate", world.data, "--validate-every", 2, "--json"]
    assert call(*world.train(region, *other, "--iterations", 18)).json["best"]["iteration"] == 18


def test_a_regression_is_judged_by_its_error(world: World, tmp_path: Path) -> None:
    """The smallest root mean square error is the best."""
    random = np.random.default_rng(3)
    x = random.normal(size=(96, 2)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=(x @ [[1.0], [2.0]]).astype(np.float32))
    data, region = tmp_path / "d.sealed", tmp_path / "r.region"
    seal_dataset(npz_source(tmp_path / "d.npz"), load_key(world.key), data)
    cfg = tmp_path / "n.cfg"
    cfg.write_text(
        "[net]\ninputs=2\nbatch=16\nlearning_rate=0.01\nmax_batches=30\n[connected]\noutput=1\n"
        "activation=linear\n[cost]\ntype=sse\n"
    )
    what = ["--data", data, "--region", region, "--key", world.key, "--validate", data, "--json"]
    log = tmp_path / "m.jsonl"
    best = call("train", cfg, *what, "--threads", 1, "--metrics", log).json["best"]
    found = {line["iteration"]: line["validation"] for line in lines(log) if line["validation"]}
    assert [*found] == [6, 12, 18, 24, 30]  # 96 records in batches of 16
    assert best["metric"] == "rmse"
    assert best["score"] == min(it["score"] for it in found.values()) < found[6]["score"]
    assert found[best["iteration"]]["score"] == best["score"]


def test_a_run_that_is_killed_has_the_same_history(world: World, tmp_path: Path) -> None:
    """Killed at random moments of a run that validates after every iteration: one digest."""
    seed = os.environ.get("PLINIUS_TEST_SEED", secrets.token_hex(4))
    print(f"PLINIUS_TEST_SEED={seed}")
    (told,) = killer(job_of(world, tmp_path, seed, 1, validate=world.held_out))
    assert len(set(told["digests"])) == UNTIL + 1
    for killed in told["killed"]:
        assert killed["wrong"] == []
        assert killed["digest"] == told["digests"][-1]


def test_under_a_job_only_what_it_allows_is_validated(world: World, tmp_path: Path) -> None:
    """Its validation dataset, at its intervals; what leaves, also what stops early, is rounded."""
    signing = tmp_path / "s"
    SigningKey.generate().save(signing)

    def job(name: str, *more: object) -> list[object]:
        data = ["--data", world.data, "--key", world.key, "--records", 16, "--output-every", 4]
        out = ["--sign", signing, "-o", tmp_path / name]
        assert call("job", "create", world.cfg, *data, *out, *more).code == 0
        return ["--job", tmp_path / name, "--owner", tmp_path / "s.pub"]

    log, region = tmp_path / "m.jsonl", tmp_path / "r.region"
    given = job("good", "--validate", world.held_out, "--digits", 1)
    told = call(*world.train(region, *validating(world), "--metrics", log, "--json"), *given)
    scores = [line["validation"]["score"] for line in lines(log) if line["validation"]]
    assert len(scores) == 6
    assert all(score == round(score, 1) for score in scores)
    assert told.json["best"]["score"] == max(scores)
    history = next(
        t for t in newest_snapshot(region, load_key(world.key)).tensors if "history" in t.name
    )
    assert np.frombuffer(history.data).reshape(-1, 2)[:, 1].tolist() == scores
    for options, permit, refusal in (
        (["--validate-every", 6], given, "does not allow validating after every 6 iterations"),
        (["--validate", world.data, "--validate-every", 4], given, "not allow validating on data"),
        (["--validate-every", 4], job("t", "--test", world.held_out), "only: testing on it"),
        (["--validate-every", 4], job("u"), "does not allow validating on dataset"),
        (
            ["--validate-every", 4],
            job("n", "--validate", world.held_out, "--allow", "none"),
            "does not allow the output 'accuracy'",
        ),
    ):
        new = tmp_path / "new.region"
        chosen = options if "--validate" in options else ["--validate", world.held_out, *options]
        refused = call(*world.train(new, *chosen), *permit)
        assert refused.code == 1, refusal
        assert refusal in refused.stderr
        assert not new.exists()
