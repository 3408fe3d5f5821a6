"""The manifest for Gramine: what it names, and where Gramine is installed that it renders."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import gramine
from plinius.cli.main import main

ROOT = Path(__file__).parents[2]
TEMPLATE = gramine.TEMPLATE.read_text()
WORDS = ["job", "data", "region", "https://broker.example", "00" * 32]


def test_the_manifest_uses_options_that_train_has() -> None:
    """Its command line is measured, so a mistake in it shows late."""
    options = set(re.findall(r'"(--[a-z-]+)"', TEMPLATE))
    known = {
        option
        for parameter in main.get_command(click.Context(main), "train").params  # type: ignore[union-attr]
        for option in parameter.opts
    }
    assert {"--broker", "--broker-pin", "--job", "--owner"} <= options <= known


def test_only_data_and_region_are_not_measured() -> None:
    """The template has a variable for each, and every variable has a value."""
    allowed = TEMPLATE.split("sgx.allowed_files")[1].split("]")[0]
    assert re.findall(r"file:{{ (\w+) }}", allowed) == ["data", "region"]
    named = set(re.findall(r"{{[^}]*?\b([a-z_]+)\b(?: \| int\))?[^}]*}}", TEMPLATE))
    assert named - {"gramine", "libos", "runtimedir"} <= set(gramine.variables(*WORDS))
    assert "sgx.debug = false" in TEMPLATE


def test_without_gramine_one_sentence_says_what_to_install() -> None:
    """And nothing is written."""
    if shutil.which("gramine-manifest"):
        pytest.skip("Gramine is installed here")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gramine.py"), *WORDS], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Gramine is not installed; install" in done.stderr


def test_the_manifest_renders() -> None:
    """With Gramine's own tool."""
    if shutil.which("gramine-manifest") is None:
        pytest.skip("Gramine is not installed (make gramine says what to install)")
    subprocess.run([sys.executable, str(ROOT / "tools" / "gramine.py"), *WORDS], check=True)
    assert "mrenclave" in gramine.rule({"mr_enclave": "00" * 32})
