"""The broker: who gets which keys, once, and what the owner reads of it."""

import dataclasses
import os
from pathlib import Path

import pytest

from plinius.errors import AttestationError, KeyFileError, SealError
from plinius.trust import ledger
from plinius.trust.broker import MAX_CHALLENGES, Broker
from plinius.trust.messages import AnchorRequest, decode_answer
from plinius.trust.release import DatasetKeys, ReleaseKey, run_key
from plinius.trust.service import Rates
from plinius.trust.simulated import DevelopmentKey
from trust.attesting import mutations
from trust.brokers import JOB, Place, Trainer, commit

SALT = b"\3" * 32
DATASETS = f'[[job.dataset]]\nid = "{"04" * 16}"\nsalt = "{SALT.hex()}"\n'
REFUSED = "The broker refuses this trainer"


def test_an_accepted_trainer_gets_the_keys_of_its_job_and_not_the_owners(tmp_path: Path) -> None:
    """The run key is derived from owner and job; datasets open by their salt; nothing else does."""
    place = Place(tmp_path, datasets=DATASETS)
    release = Trainer(place.broker()).attest().release
    owner_secret = place.owner_file.read_text().split()[-1]
    assert owner_secret not in release.encode().decode()
    assert release.run_key == place.owner.object_key("run", JOB)
    sealed = place.owner.sealer("dataset-records", SALT).seal(5, b"record", b"aad")
    keys = DatasetKeys(release.owner_id, release.datasets)
    assert keys.id == place.owner.id
    assert keys.sealer("dataset-records", SALT).open(5, sealed, b"aad") == b"record"
    for purpose, salt in (("dataset-records", b"\4" * 32), ("mirror", SALT), ("run", JOB)):
        with pytest.raises(KeyFileError, match="was not released to this trainer"):
            keys.sealer(purpose, salt)


def test_two_jobs_have_two_run_keys(tmp_path: Path) -> None:
    """So another job under the same measurement cannot open the run of this one."""
    owner = Place(tmp_path).owner
    sealed = run_key(owner, JOB).sealer("mirror", SALT).seal(0, b"state", b"")
    with pytest.raises(SealError):
        run_key(owner, JOB[::-1]).sealer("mirror", SALT).open(0, sealed, b"")


def test_a_challenge_serves_once_and_for_a_while(tmp_path: Path) -> None:
    """A second use, an unknown one and a late one are refused alike, with the reason in the log."""
    place = Place(tmp_path)
    broker = place.broker()
    trainer = Trainer(broker).attest()
    late, unknown = Trainer(broker), Trainer(broker)
    unknown.envelope = unknown.envelope.replace(unknown.nonce.hex().encode(), b"ab" * 32)
    with pytest.raises(AttestationError, match=REFUSED):
        broker.release(trainer.envelope, "again")
    with pytest.raises(AttestationError, match=REFUSED):
        broker.release(unknown.envelope, "unknown")
    place.now += 61
    with pytest.raises(AttestationError, match=REFUSED):
        broker.release(late.envelope, "late")
    reasons = {one["client"]: one["reason"] for one in place.audit() if one["event"] == "refused"}
    assert set(reasons.values()) == {"the challenge is unknown, used or expired"}
    assert set(reasons) == {"again", "unknown", "late"}


def test_challenges_are_bounded_and_come_free_again(tmp_path: Path) -> None:
    """No more than so many are open at once."""
    place = Place(tmp_path)
    broker = place.broker()
    for _ in range(MAX_CHALLENGES):
        broker.challenge()
    with pytest.raises(AttestationError, match="too many open challenges"):
        broker.challenge()
    place.now += 61
    Trainer(broker).attest()


@pytest.mark.parametrize("what", ["signer", "job", "no job", "key", "mutated"])
def test_a_trainer_that_the_policy_does_not_accept_gets_one_sentence(
    tmp_path: Path, what: str
) -> None:
    """The audit log has the reason, and no lease is given."""
    place = Place(tmp_path)
    broker = place.broker()
    if what == "signer":
        envelope = Trainer(broker, signer=DevelopmentKey.generate()).envelope
    elif what in ("job", "no job"):
        envelope = Trainer(broker, job=bytes(32) if what == "no job" else b"\1" * 32).envelope
    elif what == "key":
        mine, other = Trainer(broker).envelope, ReleaseKey().public.hex().encode()
        at = mine.index(b'"public_key":"') + 14
        envelope = mine[:at] + other + mine[at + len(other) :]
    else:
        envelope = Trainer(broker).envelope + b" "
    with pytest.raises(AttestationError) as caught:
        broker.release(envelope, "bad")
    assert str(caught.value) == f"{REFUSED}. Ask the owner: the broker's log says why."
    assert place.audit()[-1]["event"] == "refused"
    assert "lease" not in place.audit()[-1]


def test_mutated_messages_are_refused_and_change_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of release and of anchor: refused with an error of ours, and the anchor stands."""
    place = Place(tmp_path)
    broker = place.broker()
    trainer = Trainer(broker).attest()
    trainer.ask("begin")
    trainer.ask("advance", None, commit(1))
    key = trainer.release.lease_key
    body, _ = AnchorRequest(
        trainer.lease, "advance", "00" * 16, commit(1), commit(2), os.urandom(16).hex()
    ).encode(key)
    count = 10_000 if request.config.getoption("--soak") else 1_000
    for changed in mutations(body, count, seed=5):
        with pytest.raises(AttestationError):
            broker.anchor(changed, "host")
    for changed in mutations(Trainer(broker).envelope, 200, seed=6):
        with pytest.raises(AttestationError, match=REFUSED):
            broker.release(changed, "host")
    assert trainer.ask("begin") == (commit(1), None)


def test_an_answer_opens_for_its_own_exchange_only(tmp_path: Path) -> None:
    """Not with another lease, not for another envelope, not with another key, not changed."""
    broker = Place(tmp_path).broker()
    one, two = Trainer(broker).attest(), Trainer(broker).attest()
    lease = bytes.fromhex(one.lease)
    for key, sealed, named, envelope in (
        (one.key, one.sealed, bytes.fromhex(two.lease), one.envelope),
        (one.key, one.sealed, lease, two.envelope),
        (two.key, one.sealed, lease, one.envelope),
        (one.key, two.sealed, lease, one.envelope),
        (one.key, one.sealed[:-1], lease, one.envelope),
        (one.key, b"", lease, one.envelope),
    ):
        with pytest.raises(AttestationError, match="does not open"):
            key.open(sealed, named, envelope)


def test_an_answer_of_the_anchor_is_authentic_and_belongs_to_its_request(tmp_path: Path) -> None:
    """An old answer given again, and a changed one, are not taken."""
    broker = Place(tmp_path).broker()
    trainer = Trainer(broker).attest()
    key = trainer.release.lease_key
    requests = [
        AnchorRequest(trainer.lease, "begin", "00" * 16, None, None, f"{n:032x}").encode(key)
        for n in range(2)
    ]
    answers = [broker.anchor(body, "test") for body, _ in requests]
    assert decode_answer(key, requests[0][1], answers[0]) == (None, None)
    with pytest.raises(ValueError, match="not authentic"):
        decode_answer(key, requests[1][1], answers[0])
    for changed in mutations(answers[0], 300, seed=7):
        with pytest.raises(ValueError):  # noqa: PT011
            decode_answer(key, requests[0][1], changed)


def test_the_anchor_takes_newer_commits_of_one_trainer_only(tmp_path: Path) -> None:
    """A fork, an older commit and a trainer that was replaced are refused; a repetition is not."""
    broker = Place(tmp_path).broker()
    first = Trainer(broker).attest()
    assert first.ask("advance", None, commit(1)) == (
        None,
        "The anchor refuses: the lease has not begun",
    )
    assert first.ask("begin") == (None, None)
    assert first.ask("advance", None, commit(3)) == (commit(3), None)
    assert first.ask("advance", None, commit(3)) == (commit(3), None)  # the answer was lost
    assert "fork" in str(first.ask("advance", commit(2), commit(4))[1])
    assert "not newer" in str(first.ask("advance", commit(3), commit(2))[1])
    assert "not newer" in str(first.ask("advance", commit(3), commit(3, branch=1))[1])
    second = Trainer(broker).attest()
    assert second.ask("begin") == (commit(3), None)
    assert "would be a fork" in str(first.ask("advance", commit(3), commit(4))[1])
    assert "would be a fork" in str(first.ask("begin")[1])
    assert second.ask("advance", commit(3), commit(4)) == (commit(4), None)


def test_a_rollback_needs_the_policy_and_is_logged(tmp_path: Path) -> None:
    """With `allow_rollback` the anchor goes back; without it never."""
    place = Place(tmp_path)
    strict = place.broker()
    trainer = Trainer(strict).attest()
    trainer.ask("begin")
    trainer.ask("advance", None, commit(5))
    assert "allows no rollback" in str(trainer.ask("rewind", commit(5), commit(2))[1])
    assert place.audit()[-1]["event"] == "rewind"
    strict.close()
    loose = Place(tmp_path, "allow_rollback = true").broker()
    trainer.broker = loose
    assert trainer.ask("rewind", commit(5), commit(2)) == (commit(2), None)
    assert place.audit()[-1]["refusal"] is None
    assert place.audit()[-1]["new"] == list(commit(2))


def test_a_lease_ends_when_it_is_revoked_or_expires(tmp_path: Path) -> None:
    """At the next request; a restart does not bring it back; another lease goes on."""
    place = Place(tmp_path, "lease_seconds = 100")
    broker = place.broker()
    trainer = Trainer(broker).attest()
    trainer.ask("begin")
    ledger.revoke(place.folder, trainer.lease)
    assert "revoked the lease" in str(trainer.ask("advance", None, commit(1))[1])
    broker.close()
    trainer.broker = broker = place.broker()
    assert "revoked the lease" in str(trainer.ask("begin")[1])
    other = Trainer(broker).attest()
    assert other.ask("begin") == (None, None)
    place.now += 101
    assert "expired" in str(other.ask("advance", None, commit(1))[1])


def test_no_key_is_in_ledger_or_log(tmp_path: Path) -> None:
    """Neither the owner's, nor one that was released."""
    place = Place(tmp_path, datasets=DATASETS)
    trainer = Trainer(place.broker()).attest()
    trainer.ask("begin")
    trainer.ask("advance", None, commit(1))
    release = dataclasses.asdict(trainer.release)
    secrets = [release["run_key"], release["lease_key"], *release["datasets"].values()]
    texts = [secret.hex() for secret in secrets] + [place.owner_file.read_text().split()[-1]]
    for name in ("ledger", "audit.jsonl"):
        found = (place.folder / name).read_text()
        assert not any(text in found for text in texts)
    assert not any(text in repr(trainer.release) for text in texts)


def test_a_policy_that_names_a_key_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """At the start, not when a trainer asks."""
    place = Place(tmp_path)
    text = place.policy.read_text().replace(place.owner.id.hex(), "00" * 8)
    place.policy.write_text(text)
    with pytest.raises(KeyFileError, match="names the key 0000000000000000"):
        place.broker()


def test_the_rate_of_a_client_is_limited_and_others_go_on() -> None:
    """A bucket for each; the number of buckets is bounded."""
    now = [0.0]
    rates = Rates(2, 4, lambda: now[0])
    assert [rates.allows("a") for _ in range(5)] == [True] * 4 + [False]
    assert rates.allows("b")
    now[0] = 0.5
    assert [rates.allows("a") for _ in range(2)] == [True, False]


def test_a_broker_can_be_used_after_refusals(tmp_path: Path) -> None:
    """Refusals leave nothing behind that would refuse an honest trainer."""
    broker: Broker = Place(tmp_path).broker()
    for data in (b"", b"{}", b"[" * 1000, b"\xff" * 100):
        with pytest.raises(AttestationError):
            broker.release(data, "host")
        with pytest.raises(AttestationError):
            broker.anchor(data, "host")
    Trainer(broker).attest()


def test_a_release_is_synced_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the audit log too: receipts are checked against it."""
    broker, synced, sync = Place(tmp_path / "broker").broker(), set[str](), os.fsync

    def noted(handle: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    Trainer(broker).attest()
    assert synced == {"ledger", "audit.jsonl"}
    broker.close()
