"""The TPM as anchor: a real software TPM (swtpm), which the tests start."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.world import World, call
from plinius.errors import AnchorError
from plinius.keys import OwnerKey
from plinius.trust.ledger import Newest
from plinius.trust.tpm_anchor import TpmAnchor
from plinius.trust.tpm_device import Tpm
from trust.software_tpm import software_tpm

TOOLS = ("swtpm", "tpm2_nvundefine")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
KEY = OwnerKey(bytes(range(32)))
RUN = "00" * 16


def point(number: int) -> Newest:
    return number, f"{number:064x}"


@pytest.fixture(scope="module", autouse=True)
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A TPM that the environment names."""
    with software_tpm(tmp_path_factory.mktemp("tpm")):
        for _ in range(100):
            try:
                Tpm(b"x").close()
                break
            except AnchorError:
                time.sleep(0.05)
        yield


@pytest.fixture
def terms(request: pytest.FixtureRequest) -> Iterator[bytes]:
    """The terms of a job of this test, whose indices are removed after it."""
    made = random.Random(request.node.name).randbytes(32)
    yield made
    anchor = TpmAnchor(KEY, made, 1)
    anchor._tpm._flush_sessions()  # the tools need room for one
    anchor.close()
    for index in (anchor.counter, anchor.record):
        remove(index.handle)


def remove(handle: int) -> None:
    """What the owner of the TPM can do: remove an index."""
    done = subprocess.run(
        ["tpm2_nvundefine", "-C", "o", f"{handle:#x}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or "0x18b" in done.stderr.lower(), done.stderr


def begun(terms: bytes) -> Newest | None:
    """What a process that begins finds as the newest commit."""
    anchor = TpmAnchor(KEY, terms, 1)
    try:
        return anchor.begin(RUN)
    finally:
        anchor.close()


def test_the_next_process_finds_the_newest_commit(terms: bytes) -> None:
    """None at first; then what was advanced last, however often somebody begins."""
    anchor = TpmAnchor(KEY, terms, 1)
    assert anchor.begin(RUN) is None
    anchor.advance(None, point(1))
    anchor.advance(point(1), point(2))
    anchor.advance(point(1), point(2))  # asked again
    with pytest.raises(AnchorError, match="another commit as the newest"):
        anchor.advance(point(1), point(3))
    anchor.close()
    assert [begun(terms), begun(terms)] == [point(2), point(2)]


def test_a_stop_at_every_command_loses_nothing(
    terms: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a command, or with its answer lost: the newest commit is the old or the new one."""
    send, left, early = Tpm._exchange, 0, False

    def stopping(self: Tpm, message: bytes) -> bytes:
        nonlocal left
        left -= 1
        if left == 0 and early:
            raise InterruptedError
        answer = send(self, message)
        if left == 0:
            raise InterruptedError
        return answer

    newest: Newest | None = None
    for early in (True, False):  # noqa: B007 (it is used above)
        stopped = 0
        while True:
            stopped += 1
            anchor, following = TpmAnchor(KEY, terms, 1), point((newest or (0,))[0] + 1)
            monkeypatch.setattr(Tpm, "_exchange", stopping)
            left, done = stopped, False
            try:
                assert anchor.begin(RUN) == newest
                anchor.advance(newest, following)
                done = True
            except AnchorError as error:
                assert "does not answer" in str(error)  # noqa: PT017
            monkeypatch.setattr(Tpm, "_exchange", send)
            anchor.close()
            found = begun(terms)
            assert found in ((following,) if done else (newest, following))
            newest = found
            if done:
                break
        assert stopped > 20


LOOP = """
import sys
from plinius.keys import OwnerKey
from plinius.trust.tpm_anchor import TpmAnchor
anchor = TpmAnchor(OwnerKey(bytes(range(32))), bytes.fromhex(sys.argv[1]), 1)
newest = anchor.begin("00" * 16)
print(newest[0] if newest else 0, flush=True)
while True:
    number = (newest[0] if newest else 0) + 1
    following = number, f"{number:064x}"
    anchor.advance(newest, following)
    newest = following
    print(number, flush=True)
"""


def test_a_killed_process_never_loses_what_was_acknowledged(
    terms: bytes, request: pytest.FixtureRequest
) -> None:
    """SIGKILL at random: 5 times, 100 with --soak."""
    rng, newest = random.Random(7), 0
    for _ in range(100 if request.config.getoption("--soak") else 5):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, terms.hex()], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            assert first in (newest, newest + 1)
            time.sleep(rng.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
            newest = int((process.stdout.read().split() or [str(first)])[-1])
    assert newest > 0
    found = begun(terms)
    assert found is not None
    assert found[0] in (newest, newest + 1)


def test_the_second_trainer_ends_the_first(terms: bytes) -> None:
    """The first is refused at its next anchor."""
    first, second = TpmAnchor(KEY, terms, 1), TpmAnchor(KEY, terms, 1)
    second._tpm.close()
    second._tpm = first._tpm  # a software TPM serves one connection at a time
    first.begin(RUN)
    first.advance(None, point(1))
    assert second.begin(RUN) == point(1)
    with pytest.raises(AnchorError, match="another trainer continues this run"):
        first.advance(point(1), point(2))
    second.advance(point(1), point(2))
    first.close()


def test_an_older_record_is_refused(terms: bytes) -> None:
    """Also if somebody knows the auth value, and also after the counter was made anew."""
    anchor = TpmAnchor(KEY, terms, 1)
    anchor.begin(RUN)
    anchor.advance(None, point(1))
    old = anchor._tpm.read(anchor.record)
    anchor.advance(point(1), point(2))
    anchor._tpm.write(anchor.record, old)
    with pytest.raises(AnchorError, match="was rolled back: it names count"):
        anchor.begin(RUN)
    anchor.close()
    for index in (anchor.counter, anchor.record):
        remove(index.handle)
    anchor = TpmAnchor(KEY, terms, 1)
    assert anchor.begin(RUN) is None
    anchor._tpm.write(anchor.record, old)
    with pytest.raises(AnchorError, match="was rolled back: it names count"):
        anchor.begin(RUN)
    anchor.close()


def test_a_record_of_another_key_and_a_removed_counter_are_refused(terms: bytes) -> None:
    """A sentence each."""
    anchor, other = TpmAnchor(KEY, terms, 1), TpmAnchor(OwnerKey(b"\1" * 32), terms, 1)
    anchor.begin(RUN)
    data = anchor._tpm.read(anchor.record)
    anchor._tpm.write(anchor.record, data[:64] + other._tag(data[:64]))
    with pytest.raises(AnchorError, match="is not authentic"):
        anchor.begin(RUN)
    anchor.close()
    other.close()
    remove(anchor.counter.handle)
    with pytest.raises(AnchorError, match="The TPM's counter was removed"):
        begun(terms)


def test_indices_that_somebody_else_made_are_refused(terms: bytes) -> None:
    """With another auth value, or of another kind."""
    anchor = TpmAnchor(KEY, terms, 1)
    anchor.begin(RUN)
    anchor.close()
    at = f"{anchor.record.handle:#x}"
    for size, said in ((96, "The TPM refuses: response code"), (32, "is not of the kind")):
        remove(anchor.record.handle)
        for command in (
            f"tpm2_nvdefine -C o {at} -s {size} -p host -a authread|authwrite|no_da",
            f"tpm2_nvwrite {at} -C {at} -P host -i -",
        ):
            subprocess.run(command.split(), input=b"x" * size, check=True, capture_output=True)
        with pytest.raises(AnchorError, match=said):
            begun(terms)


def test_an_answer_that_is_not_the_tpms_is_refused(
    terms: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer with a bit flipped, cut short or long: a sentence, and no other commit."""
    send, rng, turn, left = Tpm._exchange, random.Random(3), 0, 0
    anchor = TpmAnchor(KEY, terms, 1)
    anchor.begin(RUN)
    anchor.advance(None, point(1))

    def lying(self: Tpm, message: bytes) -> bytes:
        nonlocal left
        answer, left = send(self, message), left - 1
        if left:
            return answer
        at = rng.randrange(len(answer))
        flipped = answer[:at] + bytes([answer[at] ^ 1 << rng.randrange(8)]) + answer[at + 1 :]
        return (flipped, answer[:at], answer + b"\0")[turn % 3]

    monkeypatch.setattr(Tpm, "_exchange", lying)
    monkeypatch.setattr("plinius.trust.tpm_device._SECONDS", 0.0)
    refused = 0
    for turn in range(200):  # noqa: B007 (it is used above)
        left = rng.randrange(1, 30)
        try:
            assert anchor.begin(RUN) == point(1)
        except AnchorError:
            refused += 1
    assert refused > 50
    monkeypatch.undo()
    anchor.close()


def test_a_tpm_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sentence each, with what to do."""
    for where, said in (
        (f"device:{tmp_path}/none", "The TPM cannot be used: No such file"),
        ("swtpm:port=1", "The TPM cannot be used: "),
        ("swtpm:port=99999", "The TPM cannot be used: "),
        ("mssim", "mssim is no TPM that can be used here"),
        ("device:/dev/null", "The TPM does not answer as one: an answer is cut short"),
    ):
        monkeypatch.setenv("TPM2TOOLS_TCTI", where)
        with pytest.raises(AnchorError, match=said):
            TpmAnchor(KEY, bytes(32), 1).begin(RUN)


def test_a_run_with_a_tpm_refuses_rollback_fork_and_a_new_beginning(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the command, under a job that asks for a TPM; --accept-rollback goes on, and says so."""
    region, old, newest = (tmp_path / name for name in ("region", "old", "newest"))
    call("keygen", "--signing", "-o", tmp_path / "sign")
    call(
        *("job", "create", world.cfg, "--data", world.data, "--key", world.key, "--anchor", "tpm"),
        *("--sign", tmp_path / "sign", "-o", tmp_path / "job", "--anchor-every", 2),
    )
    job = ["--job", tmp_path / "job", "--owner", tmp_path / "sign.pub"]
    refused = call(*world.train(region, *job))
    assert "The job needs an anchor (tpm), and this trainer has none" in refused.stderr
    command = world.train(region, *job, "--anchor", "tpm")
    said = call(*command, "--iterations", 4).stderr
    assert re.search(r"The TPM remembers the newest commit \(NV indices 0x1\w{6} and", said)
    shutil.copy(region, old)
    assert call(*command, "--iterations", 8).code == 0
    shutil.copy(region, newest)
    shutil.copy(old, region)
    rolled = call(*command).stderr
    assert "was rolled back: it is at commit" in rolled
    region.unlink()
    assert "was rolled back: it has no commit" in call(*command).stderr
    shutil.copy(newest, region)
    assert call(*command, "--iterations", 10).code == 0
    shutil.copy(old, region)
    accepted = call(*command, "--iterations", 6, "--accept-rollback")
    assert accepted.code == 0, accepted.stderr
    assert "ROLLBACK ACCEPTED" in caplog.text
    shutil.copy(newest, region)
    assert "is a fork" in call(*command).stderr
