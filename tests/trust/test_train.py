"""Training with keys from a broker: commands, TLS, many trainers at once, kills of the broker."""

import datetime
import hashlib
import os
import shutil
import signal
import socket
import statistics
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import plinius.trust.trainer as trainer
from cli.world import World, call
from plinius.errors import AnchorError, AttestationError, PliniusError
from plinius.jsonvalue import from_json
from plinius.key_file import load_key
from plinius.trust.client import Address, Client, UnreachableError
from plinius.trust.release import run_key
from trust.brokers import TrainingPlace, commit, served


@pytest.fixture
def place(tmp_path: Path, world: World) -> TrainingPlace:
    """A broker's folder whose policy releases the keys of a job of the small world."""
    return TrainingPlace(tmp_path / "broker", world)


def train(
    world: World, place: TrainingPlace, region: Path, url: str, *more: object
) -> list[object]:
    """The arguments that train with keys from a broker."""
    what = ["--data", world.data, "--region", region, "--threads", 1]
    return ["train", world.cfg, *what, *place.keys(url), *more]


def test_a_run_with_keys_from_a_broker_has_the_bits_of_one_with_a_key_file(
    world: World, place: TrainingPlace, tmp_path: Path
) -> None:
    """Stopped and resumed too; the owner opens both by the job; no key is on the disk."""
    region, plain = tmp_path / "run.region", tmp_path / "plain.region"
    assert call(*world.train(plain, *place.options)).code == 0
    with served(place) as (url, _):
        first = call(*train(world, place, region, url, "--iterations", 10))
        assert "SIMULATED" in first.stderr
        assert "NOT hardened: this command runs within another program" in first.stderr
        shutil.copy(region, old := tmp_path / "old.region")
        assert call(*train(world, place, region, url, "--json")).json["resumed_at"] == 10
        refused = call(*train(world, place, old, url))
        assert (refused.code, refused.stdout) == (1, "")
        assert "rolled back" in refused.stderr
        wanted = call(*train(world, place, old, url, "--accept-rollback"))
        assert "allows no rollback" in wanted.stderr
        assert "ACCEPTED" not in wanted.stderr
    job = ["--key", world.key, *place.options]
    digests = [call("digest", "--region", one, *job, "--json").json for one in (region, plain)]
    assert digests[0] == digests[1]
    tested = call("test", world.cfg, "--data", world.held_out, "--region", region, *job, "--json")
    assert tested.json["iteration"] == 24
    checked = ["--key", world.key, "--job", place.folder / "job", "--json"]
    verified = call("region", "verify", region, *checked).json
    assert (verified["mirror_opens"], verified["ok"]) == (24, True)
    wrong = call("digest", "--region", region, "--key", world.key)
    assert "was sealed with key" in wrong.stderr
    secret = run_key(load_key(world.key), place.job)._secret
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert secret not in (data := path.read_bytes()), path
            assert secret.hex().encode() not in data, path


def test_the_job_limits_the_exposure_that_the_policy_allows(world: World, tmp_path: Path) -> None:
    """An anchor after every 2 commits, which the job asks for, where the policy has 10."""
    options = ("--anchor", "broker", "--anchor-every", 2)
    place = TrainingPlace(tmp_path / "broker", world, "anchor_every = 10", *options)
    with served(place) as (url, _):
        command = train(world, place, tmp_path / "region", url, "--iterations", 8)
        assert call(*command).code == 0
    assert (place.folder / "ledger").read_text().count('"event":"anchor"') == 4


def test_wrong_use_of_the_options_is_told(
    world: World, place: TrainingPlace, tmp_path: Path
) -> None:
    """Exit code 2 for options that do not fit, 1 for what is refused."""
    region = tmp_path / "r"
    base = ["train", world.cfg, "--data", world.data, "--region", region]
    cases: list[tuple[list[object], int, str]] = [
        ([*base], 2, "give either --key or --broker"),
        ([*base, "--key", world.key, "--accept-rollback"], 2, "is for --broker and --anchor"),
        ([*base, "--key", world.key, "--broker-pin", "00" * 32], 2, "options for --broker"),
        ([*base, "--key", world.key, "--anchor", "tpm"], 2, "--anchor needs --job and --owner"),
        ([*base, "--broker", "x", "--anchor", "tpm"], 2, "a broker is an anchor itself"),
        ([*base, "--broker", "http://127.0.0.1:1"], 2, "--broker needs --job and --owner"),
        (train(world, place, region, "http://127.0.0.1:1"), 1, "does not answer"),
        (train(world, place, region, "http://192.0.2.1"), 1, "not the address of a broker"),
        (train(world, place, region, "ftp://127.0.0.1"), 1, "not the address of a broker"),
        (["attest", "--job-digest", "00"], 2, "not 32 bytes in hex"),
        (["broker", "--policy", place.policy, "--keys", place.folder, "--listen", "x"], 2, "HOST"),
        (
            ["broker", "--policy", place.policy, "--keys", place.folder, "--listen", "0.0.0.0:0"],
            2,
            "needs --tls-certificate",
        ),
        (["revoke", "00" * 16, "--state", place.folder], 1, "Cannot read"),
    ]
    for arguments, code, said in cases:
        result = call(*arguments)
        assert (result.code, said in result.stderr) == (code, True), result.stderr
    assert not region.exists()


def test_attest_and_verify(place: TrainingPlace, tmp_path: Path) -> None:
    """Evidence is printed and judged; a refusal says why, and exits with 1."""
    out, dev = tmp_path / "evidence.json", place.folder / "dev"
    made = call("attest", "--simulated", dev, "--job-digest", place.job.hex(), "-o", out, "--json")
    assert made.json["kind"] == "simulated"
    assert "proves nothing" in made.stderr
    judged = call("attest", "verify", out, "--policy", place.policy, "--json").json
    assert (judged["accepted"], judged["rule"], judged["job_in_policy"]) == (True, "sim", True)
    late = call("attest", "verify", out, "--policy", place.policy, "--nonce", "00" * 32)
    assert "answers another challenge" in late.stderr
    other = tmp_path / "other.key"
    assert call("keygen", "--development", "-o", other).code == 0
    out.unlink()
    call("attest", "--simulated", other, "-o", out)
    refused = call("attest", "verify", out, "--policy", place.policy)
    assert refused.code == 1
    assert "sim: signer is" in refused.stderr
    assert call("attest", "--nonce", "00" * 32, "verify", out).code == 2
    printed = call("attest", "--simulated", dev).stdout
    assert from_json(printed.encode())["kind"] == "simulated"


def certificate(folder: Path) -> tuple[Path, Path, bytes]:
    """A certificate for 127.0.0.1 and its key, in files, and its pin."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    found = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, SHA256())
    )
    pem, secret = folder / "tls.pem", folder / "tls.secret"
    pem.write_bytes(found.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return pem, secret, hashlib.sha256(spki).digest()


def test_tls_by_a_pinned_key_and_by_a_certificate(place: TrainingPlace, tmp_path: Path) -> None:
    """Both reach the broker; another pin, other certificates, and no TLS do not."""
    pem, secret, pin = certificate(tmp_path)
    with served(place, "--tls-certificate", str(pem), "--tls-key", str(secret)) as (url, _):
        assert url.startswith("https://")
        for good in (Address(url, pin=pin), Address(url, certificates=pem)):
            assert trainer.ask_for_keys(good, place.job, place.source).evidence_kind == "simulated"
        with pytest.raises(AttestationError, match="another key than the one that is pinned"):
            trainer.ask_for_keys(Address(url, pin=pin[::-1]), place.job, place.source)
        for bad in (Address(url), Address(url.replace("https", "http"))):
            with pytest.raises(PliniusError):
                trainer.ask_for_keys(bad, place.job, place.source)


def test_hostile_requests_are_refused_and_the_broker_goes_on(place: TrainingPlace) -> None:
    """Too large, of no form, to other addresses, cut off, and too many."""
    with served(place, "--rate", "20") as (url, _):
        client = Client(Address(url))
        for path, body, error in (
            ("/v1/release", b"x" * 70_000, "too large"),
            ("/v1/anchor", b"x" * 5_000, "too large"),
            ("/v1/challenge", b"x", "too large"),
            ("/v1/release", b"\xff", "refuses this trainer"),
            ("/v1/anchor", b"{}", "not of this format"),
            ("/v1/keys", b"", "does not answer as a broker"),
        ):
            with pytest.raises(AttestationError, match=error):
                client.post(path, body)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as cut:
            cut.sendall(b"POST /v1/release HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nab")
        assert trainer.ask_for_keys(Address(url), place.job, place.source)
        with pytest.raises(UnreachableError, match="is busy"):
            for _ in range(400):
                client.post("/v1/challenge", b"")
        client.close()


def test_many_trainers_at_once_each_get_one_answer(
    place: TrainingPlace, request: pytest.FixtureRequest
) -> None:
    """40 (200 with --soak) at once: as many leases, all different, all of the same run key."""
    count = 200 if request.config.getoption("--soak") else 40
    found: list[trainer.Granted | BaseException] = []
    with served(place, "--rate", "1000") as (url, _):

        def ask() -> None:
            try:
                found.append(trainer.ask_for_keys(Address(url), place.job, place.source))
            except BaseException as error:
                found.append(error)

        threads = [threading.Thread(target=ask) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        granted = [one for one in found if isinstance(one, trainer.Granted)]
        assert len(granted) == count, found
        assert len({repr(one.anchor) for one in granted}) == count
        assert len({one.run_key.id for one in granted}) == 1
        seconds = []
        for _ in range(20):
            started = time.perf_counter()
            last = trainer.ask_for_keys(Address(url), place.job, place.source)
            seconds.append(time.perf_counter() - started)
        print(f"evidence to key: {1000 * statistics.median(seconds):.1f} ms")
        last.anchor.begin("00" * 16)
        anchored = []
        for number in range(1, 21):
            started = time.perf_counter()
            last.anchor.advance(commit(number - 1) if number > 1 else None, commit(number))
            anchored.append(time.perf_counter() - started)
        print(f"anchor: {1000 * statistics.median(anchored):.1f} ms")
    leases = [one for one in place.audit() if one["event"] == "released"]
    assert len({one["lease"] for one in leases}) == count + 20


def test_a_broker_that_is_killed_while_anchoring_never_forgets(
    place: TrainingPlace, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """SIGKILL between and during requests; what was acknowledged is the newest afterwards."""
    monkeypatch.setattr(trainer, "RETRY_SECONDS", 0.0)
    newest = None
    for turn in range(100 if request.config.getoption("--soak") else 5):
        with served(place, "--rate", "1000") as (url, pid):
            granted = trainer.ask_for_keys(Address(url), place.job, place.source)
            begun = granted.anchor.begin("00" * 16)
            assert begun in (newest, commit((newest or (0,))[0] + 1))
            newest = begun
            killer = threading.Timer(0.01 * (turn % 10), os.kill, (pid, signal.SIGKILL))
            killer.start()
            with pytest.raises(AnchorError, match="no authentic answer"):
                while True:
                    following = commit((newest or (0,))[0] + 1)
                    granted.anchor.advance(newest, following)
                    newest = following
            killer.join()
