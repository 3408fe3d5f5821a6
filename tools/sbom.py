"""Writes build/sbom.json: the packages of the lock files as a CycloneDX 1.6 bill of materials.

It says what `make setup` may install, each package with the hashes of all its listed wheels. It
holds no time and no random number: the same lock gives the same file.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from lock import CPU_LOCK, LOCK, ROOT, read_lock

TARGET = ROOT / "build" / "sbom.json"


def main() -> None:
    """Read the lock files, write the bill."""
    components = [
        component(name, version, hashes)
        for path in (LOCK, CPU_LOCK)
        for name, (versions, hashes) in read_lock(path).items()
        for version in sorted(versions)
    ]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "plinius", "bom-ref": "plinius"}},
        "components": components,
    }
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    print(f"{len(components)} packages: {TARGET.relative_to(ROOT)}")


def component(name: str, version: str, hashes: set[str]) -> dict[str, Any]:
    """One package."""
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": purl,
        "bom-ref": purl,
        "hashes": [{"alg": "SHA-256", "content": one} for one in sorted(hashes)],
    }


if __name__ == "__main__":
    main()
