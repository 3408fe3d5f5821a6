"""What people and job systems expect of a command: signals, full disks, versions, completion."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import click
import pytest
from click.testing import CliRunner

from cli.world import CFG, World, call, mounted
from plinius import __version__
from plinius.cli.main import main
from plinius.errors import StorageError
from plinius.files import publish

ROOT = Path(__file__).parents[2]
STARTED = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); print('ready', flush=True); "
    "from plinius.__main__ import run; run()"
)
"""The command from its first line on: before it, the interpreter itself starts."""
SHORT, SOAKED = 5, 200


def test_a_signal_at_start_up_leaves_no_traceback(
    world: World, trained: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Ctrl-C and SIGTERM at random moments; a trainer that caught it has mirrored its state."""
    seed = os.environ.get("PLINIUS_TEST_SEED", secrets.token_hex(4))
    print(f"PLINIUS_TEST_SEED={seed}")
    random = Random(seed)
    using = ["--region", trained, "--key", world.key]
    commands: list[list[object]] = [
        world.train(tmp_path / "run.region", "--validate", world.held_out, "--iterations", 4),
        ["seal", "--images", world.images, "--labels", world.labels, "--key", world.key, "-o",
         tmp_path / "x.sealed"],
        ["test", world.cfg, "--data", world.held_out, *using],
        ["predict", world.cfg, "--data", world.held_out, *using, "-o", tmp_path / "p.csv"],
        ["export", *using, "-o", tmp_path / "w.safetensors"],
    ]  # fmt: skip
    for number in range(SOAKED if request.config.getoption("--soak") else SHORT):
        command = [*map(str, commands[number % len(commands)])]
        how = random.choice([signal.SIGINT, signal.SIGTERM])
        process = subprocess.Popen(
            [sys.executable, "-c", STARTED, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, 1.5))
        process.send_signal(how)
        _, said = process.communicate(timeout=120)
        assert "Traceback" not in said, said
        assert "Exception" not in said, said
        assert process.returncode in (0, 75, 130, -how), said
        for name in ("x.sealed", "p.csv", "w.safetensors"):
            (tmp_path / name).unlink(missing_ok=True)


def test_a_second_interrupt_stops_at_once() -> None:
    """But not the same Ctrl-C passed on by a wrapper, nor a second SIGTERM."""
    waits = (
        "import time\nfrom plinius.cli.stop import Stop\nstop = Stop()\n"
        "print('ready', flush=True)\nwhile True:\n time.sleep(0.01)\n"
        " stop.wanted and print('wanted', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", waits], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        process.send_signal(number)
        assert process.stdout.readline() == "wanted\n"
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == "plinius: Stopped at once; the same command resumes the run.\n"


def test_metrics_on_a_full_disk_do_not_stop_training(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; what was written before is whole, and so is what comes after."""
    small = tmp_path / "small"
    with mounted(small, "-t", "tmpfs", "-o", "size=8k", "tmpfs") as done:
        if not done:
            pytest.skip("this process may not mount")
        log = small / "m.jsonl"
        (small / "filler").write_bytes(bytes(4096))
        cfg = tmp_path / "long.cfg"
        cfg.write_text(CFG.replace("max_batches=24", "max_batches=40"))
        told = call("train", cfg, *world.train(tmp_path / "r.region", "--metrics", log)[2:])
        assert told.code == 0
        warnings = [it.getMessage() for it in caplog.records]
        assert warnings == [
            f"Metrics cannot be written to {log}: No space left on device. Training goes on."
        ]
        *whole, torn = log.read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in whole] == [*range(1, len(whole) + 1)]
        assert 1 < len(whole) < 40
        assert len(torn) < len(whole[0])
        (small / "filler").unlink()
        more = ["--metrics", log, "--iterations", 41]
        assert call("train", cfg, *world.train(tmp_path / "r.region", *more)[2:]).code == 0
        assert json.loads(log.read_text().splitlines()[-1])["iteration"] == 41


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    """Two `seal`s to one output: one of them is whole, the other is refused."""
    path, first, second = tmp_path / "x", threading.Event(), threading.Event()

    def other() -> None:
        first.wait()
        with publish(path) as file:
            file.write(b"second")
        second.set()

    writer = threading.Thread(target=other)
    writer.start()
    with pytest.raises(StorageError, match="exists already|writes .* too"), publish(path) as file:
        file.write(b"first")
        first.set()
        second.wait()
    writer.join()
    assert [it.name for it in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == b"second"


def test_a_refused_first_run_does_not_block_the_corrected_one(world: World, tmp_path: Path) -> None:
    """Nothing is made by what can be refused before; a loss that is not finite says what to do."""
    region = tmp_path / "run.region"
    for wrong in (
        ["--metrics", tmp_path / "no" / "m"], ["--tensorboard", world.cfg / "x"],
        ["--validate", world.images], ["--weights", tmp_path / "none.weights"],
        ["--dataset-id", "00" * 16],
    ):  # fmt: skip
        assert call(*world.train(region, *wrong)).code == 1
        assert not region.exists(), wrong
    assert call(*world.train(region)).code == 0


def test_a_byte_order_mark_before_a_cfg_does_not_count(world: World, tmp_path: Path) -> None:
    """Editors of some systems write U+FEFF: the recipe is the same."""
    cfg = tmp_path / "bom.cfg"
    cfg.write_bytes(b"\xef\xbb\xbf" + world.cfg.read_bytes().replace(b"\n", b"\r\n"))
    assert call(*world.train(tmp_path / "r.region", "--iterations", 1)).code == 0
    more = world.train(tmp_path / "r.region", "--iterations", 2, "--json")[2:]
    assert call("train", cfg, *more).json["resumed_at"] == 1


def test_the_version_is_told() -> None:
    """-V and --version."""
    assert call("-V").stdout == call("--version").stdout == f"plinius, version {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_files(shell: str) -> None:
    """The script that the README names; commands, options, and names of files."""
    script = complete(_PLINIUS_COMPLETE=f"{shell}_source")
    assert "_PLINIUS_COMPLETE" in script
    for words, wanted in (
        ("plinius pre", "predict"),
        ("plinius train --valid", "--validate"),
        ("plinius train --data ", "file"),
    ):
        last = words.split(" ")
        given = {"COMP_WORDS": words, "COMP_CWORD": str(len(last) - 1)}
        given |= {"COMP_CWORD": last[-1]} if shell == "fish" else {}
        assert wanted in complete(_PLINIUS_COMPLETE=f"{shell}_complete", **given)


def complete(**given: str) -> str:
    """What the command answers to a shell that completes."""
    return CliRunner().invoke(main, [], prog_name="plinius", env=given).stdout


def test_help_and_tables_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 columns, for the help of every command, and for the layers of real networks."""
    monkeypatch.setenv("COLUMNS", "60")
    told = []
    for name, command in (("plinius", main), *main.commands.items()):
        with click.Context(command, info_name=name, terminal_width=58) as context:
            told += command.get_help(context).splitlines()
    assert set(main.commands) <= {line.split()[0] for line in told if line.strip()}
    table = call("describe", ROOT / "demo" / "mnist.cfg").stdout.splitlines()
    assert table[0].split() == ["layer", "type", "filters", "output", "parameters"]
    wide = [line for line in [*told, *table] if len(line) > 60]
    assert wide == []
    monkeypatch.delenv("COLUMNS")
    assert "BFLOPs" in call("describe", ROOT / "demo" / "mnist.cfg").stdout.splitlines()[0]


def test_commands_start_without_torch() -> None:
    """Importing it takes two seconds; and train must handle signals before that."""
    program = "import sys, plinius.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
