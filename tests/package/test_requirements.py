"""The lock files, pyproject.toml and constraints.txt agree."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lock
import sbom

ROOT = Path(__file__).parents[2]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED = lock.read_lock(lock.LOCK) | lock.read_lock(lock.CPU_LOCK)


UNLOCKED = ("wandb", "mlflow")
"""The extras that are not locked, as CONTRIBUTING.md says."""


def declared() -> list[Requirement]:
    """What the package, its extras that are locked and its build ask for."""
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[it] for it in extras if it not in UNLOCKED)]
    groups.append(PROJECT["build-system"]["requires"])
    found = [Requirement(text) for group in groups for text in group]
    return [one for one in found if one.name != "plinius"]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_a_declared_dependency_is_locked_within_its_range(requirement: Requirement) -> None:
    """Every version that is locked for it."""
    versions, hashes = LOCKED[canonicalize_name(requirement.name)]
    assert versions
    assert all(requirement.specifier.contains(version) for version in versions)
    assert hashes


def test_the_versions_that_were_chosen_are_those_that_are_locked() -> None:
    """constraints.txt is followed."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if not line.startswith("#"):
            chosen = Requirement(line)
            assert all(
                chosen.specifier.contains(version)
                for version in LOCKED[canonicalize_name(chosen.name)][0]
            )


def test_every_locked_package_has_a_hash_and_comes_from_no_address() -> None:
    """Also in the file for torch's CUDA build."""
    for path in (lock.LOCK, lock.CPU_LOCK, lock.CUDA_LOCK):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text
        assert not re.search(r"^-", text, re.MULTILINE), "an option of pip"
        assert all(hashes for _, hashes in lock.read_lock(path).values())


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_lightning_is_kept_out(version: str) -> None:
    """By the lock, and by what the package declares."""
    assert version not in LOCKED["lightning"][0] | LOCKED["pytorch-lightning"][0]
    (asked,) = (one for one in declared() if one.name == "lightning")
    assert not asked.specifier.contains(version)


def test_the_bill_of_materials_lists_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every package with its hashes; the same lock gives the same bytes."""
    monkeypatch.setattr(sbom, "ROOT", tmp_path)
    monkeypatch.setattr(sbom, "TARGET", tmp_path / "build" / "sbom.json")
    sbom.main()
    first = sbom.TARGET.read_bytes()
    sbom.main()
    assert sbom.TARGET.read_bytes() == first
    bill = json.loads(first)
    assert bill["bomFormat"] == "CycloneDX"
    assert {part["name"] for part in bill["components"]} == {*LOCKED}
    assert all(part["hashes"] for part in bill["components"])
