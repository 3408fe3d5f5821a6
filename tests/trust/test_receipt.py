"""Receipts: what they state of a run, and that no other bytes are accepted for one."""

import base64
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from cli.world import CLASSES, World, call
from plinius.data.sealed_dataset import SealedDataset, seal_dataset
from plinius.errors import AttestationError, PliniusError
from plinius.jsonvalue import Json
from plinius.key_file import load_key
from plinius.keys import OwnerKey
from plinius.sources.idx import idx_source
from plinius.trust.job_file import load_job
from plinius.trust.policy import load_policy
from plinius.trust.receipt import sign_receipt, verify_receipt
from plinius.trust.release import ReleaseKey
from plinius.trust.signing import SigningKey, load_signer
from plinius.trust.simulated import DevelopmentKey
from trust.attesting import mutations
from trust.brokers import SIGNER, Place, TrainingPlace, served

VECTORS = Path(__file__).parents[1] / "vectors" / "formats"


def said(job: str, evidence: str, **other: Json) -> dict[str, Json]:
    """What a receipt states of some run."""
    signed = load_job(VECTORS / "job" / "good.job", load_signer(VECTORS / "job" / "signer.pub"))
    datasets: list[Json] = [[one.role, one.id, None] for one in signed.job.datasets]
    return {
        "made": "2026-01-31T12:00:00Z", "plinius": "0.1.0", "job": job, "run": "ab" * 16,
        "iteration": 1, "datasets": datasets, "first": "cd" * 32, "last": [2, "ef" * 32],
        "restarts": [[1, 1]], "restart_count": 1, "anchor": [2, "ef" * 32], "accuracy": None,
        "evidence": evidence, **other,
    }  # fmt: skip


class Desk:
    """An owner who judges receipts of the job in the vectors; a trainer who makes them."""

    def __init__(self, folder: Path) -> None:
        path = VECTORS / "job" / "good.job"
        self.owner = load_signer(VECTORS / "job" / "signer.pub")
        self.job = path.read_text()
        self.digest = bytes.fromhex(load_job(path, self.owner).digest)
        self.place = Place(folder, job=self.digest)
        self.policy = load_policy(self.place.policy)

    def receipt(
        self, signer: DevelopmentKey = SIGNER, key: ReleaseKey | None = None, **other: Json
    ) -> bytes:
        """A receipt; `key` signs it instead of the one in the evidence."""
        mine = ReleaseKey()
        evidence = signer.evidence(mine.public, bytes(32), self.digest).encode().decode()
        return sign_receipt(said(self.job, evidence, **other), key or mine)

    def verify(self, data: bytes) -> dict[str, Any]:
        return verify_receipt(data, self.policy, self.owner).predicate


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "desk")


def test_a_receipt_states_the_run_and_is_verified_by_policy_and_owner(
    world: World, tmp_path: Path
) -> None:
    """Restarts, first and last commit, datasets, accuracy; an older region gets none."""
    place, region, out = TrainingPlace(tmp_path / "b", world), tmp_path / "r", tmp_path / "R.json"
    command = ["train", world.cfg, "--data", world.data, "--region", region, "--threads", 1]
    with served(place) as (url, _):
        keys = place.keys(url)
        for until in (5, 11):
            assert call(*command, *keys, "--iterations", until).code == 0
        shutil.copy(region, old := tmp_path / "old")
        done = call(*command, *keys, "--json").json
        tested = ["--cfg", world.cfg, "--data", world.held_out]
        refused = call("receipt", "--region", old, "-o", out, *keys)
        assert "is not the newest that its anchor knows" in refused.stderr
        assert not out.exists()
        made = call("receipt", "--region", region, "-o", out, *keys, *tested, "--json").json
    public = ["--policy", place.policy, "--owner", place.folder / "sign.pub"]
    public += ["--state", place.folder]
    shown = call("receipt", "verify", out, *public, "--json")
    found = shown.json
    assert "SIMULATED" in shown.stderr
    assert {name: value for name, value in made.items() if name != "receipt"}.items() <= (
        found.items()
    )
    assert found["restarts"] == [[5, 5], [11, 11]]
    assert (found["restart_count"], found["iteration"], found["last"][0]) == (2, 24, 24)
    assert (found["run"], found["rule"]) == (done["run_id"], "sim")
    assert [one[2] for one in found["datasets"]] == [320, 80]
    owner = ["--key", world.key, *place.options]
    measured = call(
        "test", *tested[1:2], "--data", world.held_out, "--region", region, *owner, "--json"
    )
    assert found["accuracy"]["accuracy"] == measured.json["accuracy"]
    other = tmp_path / "other"
    SigningKey.generate().save(other)
    wrong = call("receipt", "verify", out, "--policy", place.policy, "--owner", f"{other}.pub")
    assert "names signer" in wrong.stderr


def test_a_receipt_for_a_broker_of_the_hosts_own_is_found_by_the_owners_files(
    world: World, tmp_path: Path
) -> None:
    """The host trains on its own records, under the owner's job, ids and an honest trainer."""
    owners, host = TrainingPlace(tmp_path / "b", world), tmp_path / "host"
    host.mkdir()
    OwnerKey.generate().save(host / "owner.key")
    key, named = load_key(host / "owner.key"), ""
    for path, like in ((host / "train", world.data), (host / "test", world.held_out)):
        genuine = SealedDataset.from_file(like, load_key(world.key)).header
        source = idx_source(world.images, world.labels, CLASSES)
        header = seal_dataset(source, key, path, same_id=genuine.id)
        named += f'[[job.dataset]]\nid = "{header.id.hex()}"\nsalt = "{header.salt.hex()}"\n'
    SIGNER.save(host / "dev")
    region, out = tmp_path / "r", tmp_path / "R.json"
    own = Place(host, datasets=named, job=owners.job)
    with served(own) as (url, _):
        keys = owners.keys(url)
        data = ["--data", host / "train", "--region", region, "--threads", 1]
        assert call("train", world.cfg, *data, *keys).code == 0
        assert call("receipt", "--region", region, "-o", out, *keys).code == 0
    public = ["--policy", owners.policy, "--owner", owners.folder / "sign.pub"]
    alone = call("receipt", "verify", out, *public, "--json")
    assert (alone.code, alone.json["broker_checked"]) == (0, False)
    assert "Which broker gave the keys is not checked" in alone.stderr
    owners.broker().close()  # its files, without an entry
    refused = call("receipt", "verify", out, *public, "--state", owners.folder)
    assert refused.code == 1
    assert "this broker released no keys for its evidence" in refused.stderr
    shutil.copy(host / "audit.jsonl", owners.folder)
    refused = call("receipt", "verify", out, *public, "--state", owners.folder)
    assert "this broker does not know its last commit" in refused.stderr
    assert call("receipt", "verify", out, *public, "--state", host).code == 0
    (owners.folder / "audit.jsonl").write_text("no json\n")
    refused = call("receipt", "verify", out, *public, "--state", owners.folder)
    assert "audit.jsonl is no file of a broker. Name its --state folder." in refused.stderr


def test_no_mutation_of_a_receipt_is_accepted(desk: Desk, request: pytest.FixtureRequest) -> None:
    """1,000 (10,000 with --soak), of its text and of its statement; each is told in one error."""
    good = desk.receipt()
    assert desk.verify(good)["run"] == "ab" * 16
    count = 5_000 if request.config.getoption("--soak") else 500
    envelope = json.loads(good)
    payload = base64.b64decode(envelope["payload"])
    for changed in mutations(good, count, seed=5):
        with pytest.raises(PliniusError):
            desk.verify(changed)
    for changed in mutations(payload, count, seed=6):
        again = envelope | {"payload": base64.b64encode(changed).decode()}
        text = json.dumps(again, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(PliniusError):
            desk.verify(text)


def test_a_receipt_is_verified_in_under_100_ms(desk: Desk) -> None:
    """The median of 20, policy and signature read anew."""
    good, seconds = desk.receipt(), []
    for _ in range(20):
        began = time.perf_counter()
        verify_receipt(good, load_policy(desk.place.policy), desk.owner)
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[10] < 0.1


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"signer": DevelopmentKey(b"\6" * 32)}, "the policy refuses its evidence .sim: signer is"),
        ({"key": ReleaseKey()}, "its key is not the one in its evidence"),
        ({"anchor": [1, "ef" * 32]}, "its last commit is not the one that its anchor knew"),
        ({"last": [2, "00" * 32]}, "its last commit is not the one that its anchor knew"),
        ({"datasets": []}, "its datasets are not those of its job"),
        ({"iteration": 10**9}, "its run is not one of its job"),
        ({"made": "yesterday"}, "This is no receipt"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    desk: Desk, other: dict[str, Any], why: str
) -> None:
    """Another key, anchor, dataset or run, with the reason."""
    with pytest.raises(PliniusError, match=why):
        desk.verify(desk.receipt(**other))


def test_a_receipt_for_a_job_that_the_policy_does_not_name_is_refused(
    desk: Desk, tmp_path: Path
) -> None:
    """Whatever its evidence says."""
    policy = load_policy(Place(tmp_path / "other").policy)
    with pytest.raises(AttestationError, match="does not name its job"):
        verify_receipt(desk.receipt(), policy, desk.owner)


def test_the_vectors_of_receipts(desk: Desk) -> None:
    """One that is accepted, and some that are not."""
    folder = VECTORS / "receipt"
    policy = load_policy(folder / "policy.toml")
    for name, opens in json.loads((folder / "cases.json").read_text()).items():
        data = (folder / name).read_bytes()
        if opens is True:
            assert verify_receipt(data, policy, desk.owner).verdict.rule == "sim"
        else:
            with pytest.raises(PliniusError, match=opens):
                verify_receipt(data, policy, desk.owner)
