"""Writes the vectors of docs/formats/receipt.md, under new keys: only when a format changes."""

import base64
import json
import tempfile
from pathlib import Path

from plinius.trust.release import ReleaseKey
from plinius.trust.simulated import DevelopmentKey
from trust.test_receipt import Desk

FOLDER = Path(__file__).parent / "receipt"


def main() -> None:
    """Write the files that cases.json names, and the policy."""
    with tempfile.TemporaryDirectory() as name:
        desk = Desk(Path(name) / "desk")
        good = desk.receipt()
        envelope = json.loads(good)
        payload = base64.b64decode(envelope["payload"]).replace(b"ab" * 16, b"ac" * 16)
        envelope["payload"] = base64.b64encode(payload).decode()
        cases = {
            "good": good,
            "longer": good + b"\n",
            "changed": json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode(),
            "another-key": desk.receipt(key=ReleaseKey()),
            "another-signer": desk.receipt(DevelopmentKey(b"\6" * 32)),
            "older": desk.receipt(anchor=[1, "ef" * 32]),
        }
        for case, data in cases.items():
            (FOLDER / f"{case}.json").write_bytes(data)
        text = desk.place.policy.read_text().replace(desk.place.owner.id.hex(), "00" * 8)
        (FOLDER / "policy.toml").write_text(text)


if __name__ == "__main__":
    main()
