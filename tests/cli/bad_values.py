"""Bad values for every option and argument that names a file, in every command."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cli.world import World, call, textures, write_idx
from plinius.trust.signing import SigningKey

At = str | int

NEW, LOG, FOLDER = "a new file", "a file to append to", "a folder"
KEY_FOLDER = "a folder of keys"
KEYS = ("owner's key", "signing key", "development key")

BAD_CONTENT = {
    "cfg": (
        "does not begin with [net]. Start the file",
        "is not text. Give a Darknet .cfg file",
        ":1: 'hello' is not key=value. Correct or remove the line",
    ),
    "sealed": ("is not a sealed dataset. Make one with plinius seal",) * 3,
    "region": ("is not a Plinius region. Name a region",) * 3,
    "owner's key": ("holds no owner's key. Name a key file made by plinius keygen",) * 3,
    "signing key": ("holds no signing key. Name a file made by plinius keygen --signing",) * 3,
    "development key": ("holds no development key. Make one with plinius keygen",) * 3,
    "signer": ("holds no signer. Name the .pub file made by plinius keygen --signing",) * 3,
    "job": ("is no signed job. Name a file made by plinius job create",) * 3,
    "any of ours": ("is neither a sealed dataset nor a region. Name a file made by",) * 3,
    "csv": (
        "cannot be read as CSV: Empty CSV file. Check that",
        "cannot be read as CSV: CSV parse error",
        "has no column b. It has hello: name one of these",
    ),
    "parquet": ("cannot be read as PARQUET: ",) * 3,
    "npz": ("is not an archive written by numpy.savez. Check that it is the right file",) * 3,
    "idx": ("is truncated: it ends before", *("is not an IDX file. Check that it is the",) * 2),
    "weights": ("ends in its header. Copy the file", "is not a .weights file", "ends in its"),
    "policy": (
        "cannot be used: the policy has no version. Correct it",
        "cannot be used: 'utf-8' codec",
        "cannot be used: Expected '=' after a key",
    ),
    "evidence": ("This is no evidence: it is no JSON object. Make it with plinius attest",) * 3,
}
"""What a refusal says of a file that is empty, garbage, or a line of text after U+FEFF."""


@dataclass
class Use:
    """A command that works, and what its values that name files have to be, by option.

    An argument goes by its number. `suffix` is that of the new files.
    """

    words: list[object]
    wants: dict[At, str]
    suffix: str = ""

    def with_value(self, at: At, value: object) -> list[str]:
        """The command with another value for an option or argument."""
        words = [str(word) for word in self.words]
        if isinstance(at, int):
            words[at] = str(value)
        elif at in words:
            words[words.index(at) + 1] = str(value)
        else:
            words += [at, str(value)]
        return words


@dataclass
class Bad:
    """A command line with a bad value, and what the refusal has to say."""

    words: list[str]
    told: str


@dataclass
class Desk:
    """A folder with one good file of every kind, and bad ones."""

    world: World
    region: Path
    folder: Path
    keys: list[Path] = field(default_factory=list)

    def lay(self) -> None:
        """Write the files."""
        w, f = self.world, self.folder
        SigningKey.generate().save(f / "sign")
        job = ["--data", w.data, "--key", w.key, "--sign", f / "sign"]
        assert call("job", "create", w.cfg, *job, "-o", f / "job").code == 0
        assert call("keygen", "--development", "-o", f / "dev.key").code == 0
        assert call("attest", "--simulated", f / "dev.key", "-o", f / "evidence").code == 0
        signer = (f / "dev.key").read_bytes()
        assert signer
        (f / "t.csv").write_text("a,b\n1,0\n2,1\n3,0\n4,1\n")
        (f / "text.txt").write_text("to be or not to be " * 20)
        (f / "policy.toml").write_text(
            f'version = 1\n[[rule]]\nname = "r"\nkind = "simulated"\nsigner = ["{"ab" * 32}"]\n'
        )
        for number, name in enumerate(("left", "right")):
            (f / "images" / name).mkdir(parents=True)
            Image.new("L", (4, 4), number).save(f / "images" / name / "1.png")
        x, y = textures(8, seed=1)
        write_idx(f / "x.idx", x)
        write_idx(f / "y.idx", y)
        np.savez(f / "d.npz", x=x.astype(np.float32), y=y)
        pq.write_table(pa.table({"a": [1.0, 2.0], "b": [0, 1]}), f / "t.parquet")
        (f / "taken").mkdir()
        for suffix in ("", ".csv", ".svg", ".weights", ".safetensors"):
            (f / f"there{suffix}").write_text("precious")
            (f / f"place{suffix}").mkdir()
            (f / f"loop{suffix}").symlink_to(f"loop{suffix}")
        os.mkfifo(f / "fifo")
        for name, content in (
            ("empty", b""),
            ("garbage", bytes(range(255, 0, -1)) * 5),
            ("bom", b"\xef\xbb\xbfhello\n"),
            ("bare", b"7f" * 32),
        ):
            (f / name).write_bytes(content)
            (f / name).chmod(0o600)
        os.environ["PLINIUS_PASSPHRASE"] = "correct horse"
        try:
            assert call("keygen", "--passphrase", "-o", f / "wrapped.key").code == 0
        finally:
            del os.environ["PLINIUS_PASSPHRASE"]
        self.keys = [w.other_key, f / "wrapped.key", f / "sign", f / "dev.key", f / "bare"]

    def uses(self) -> Iterator[Use]:
        """A good use of every command, with all that it reads and writes."""
        w, f, key = self.world, self.folder, "owner's key"
        run: list[object] = ["--region", self.region, "--key", w.key]
        ran: dict[At, str] = {"--region": "region", "--key": key}
        data: list[object] = ["--data", w.held_out]
        permit: dict[At, str] = {"--job": "job", "--owner": "signer"}
        allowed: list[object] = ["--job", f / "job", "--owner", f / "sign.pub"]
        yield Use(["keygen", "-o", f / "new"], {"-o": NEW})
        seal: list[object] = ["seal", "--key", w.key, "-o", f / "new"]
        yield Use([*seal, "--csv", f / "t.csv", "--target", "b"],
                  {"--csv": "csv", "--key": key, "-o": NEW, "--like": "sealed"})  # fmt: skip
        yield Use([*seal, "--parquet", f / "t.parquet", "--target", "b"], {"--parquet": "parquet"})
        yield Use([*seal, "--npz", f / "d.npz"], {"--npz": "npz"})
        yield Use([*seal, "--images", f / "x.idx", "--labels", f / "y.idx"],
                  {"--images": "idx", "--labels": "idx"})  # fmt: skip
        yield Use([*seal, "--folder", f / "images"], {"--folder": FOLDER})
        yield Use(["inspect", w.data], {1: "any of ours"})
        yield Use(["open", w.data, "--key", w.key, "-o", f / "new.csv"],
                  {1: "sealed", "--key": key, "-o": NEW}, ".csv")  # fmt: skip
        yield Use(["describe", w.cfg, "--draw", f / "new.svg"], {1: "cfg", "--draw": NEW}, ".svg")
        yield Use(["job", "create", w.cfg, "--data", w.data, "--key", w.key, "--sign", f / "sign",
                   "-o", f / "new"],
                  {2: "cfg", "--data": "sealed", "--key": key, "--sign": "signing key", "-o": NEW,
                   "--validate": "sealed", "--test": "sealed", "--weights": "weights"})  # fmt: skip
        yield Use(["job", "show", f / "job"], {2: "job"})
        yield Use(["job", "verify", f / "job", "--owner", f / "sign.pub"],
                  {2: "job", "--owner": "signer"})  # fmt: skip
        train = ["train", w.cfg, "--data", w.data, "--region", f / "new.region", "--key", w.key]
        yield Use([*train],
                  {1: "cfg", "--data": "sealed", "--key": key, "--metrics": LOG,
                   "--weights": "weights", "--validate": "sealed"})  # fmt: skip
        yield Use([*train, *allowed], permit)
        yield Use(["test", w.cfg, *data, *run],
                  {1: "cfg", "--data": "sealed", **ran, "--recalibrate": "sealed"})  # fmt: skip
        yield Use(["test", w.cfg, *data, *run, *allowed], permit)
        yield Use(["predict", w.cfg, *data, *run, "-o", f / "new.csv"],
                  {1: "cfg", "--data": "sealed", **ran, "-o": NEW}, ".csv")  # fmt: skip
        yield Use(["predict", w.cfg, *data, *run, "-o", f / "new.csv", *allowed], permit)
        yield Use(["digest", *run], ran)
        yield Use(["digest", *run, *allowed], permit)
        yield Use(["export", *run, "-o", f / "new.safetensors"],
                  {**ran, "-o": NEW}, ".safetensors")  # fmt: skip
        yield Use(["export", w.cfg, *run, "-o", f / "new.weights"],
                  {1: "cfg", "-o": NEW}, ".weights")  # fmt: skip
        yield Use(["region", "info", self.region], {2: "region"})
        yield Use(["region", "verify", self.region, "--key", w.key], {2: "region", "--key": key})
        yield Use(["attest", "--simulated", f / "dev.key", "-o", f / "new"],
                  {"--simulated": "development key", "-o": NEW})  # fmt: skip
        yield Use(["attest", "verify", f / "evidence", "--policy", f / "policy.toml"],
                  {2: "evidence", "--policy": "policy"})  # fmt: skip
        yield Use(["broker", "--policy", f / "policy.toml", "--keys", f / "images", "--listen",
                   "127.0.0.1:0"], {"--policy": "policy", "--keys": KEY_FOLDER})  # fmt: skip
        yield Use(["revoke", "00" * 16, "--state", f / "images"], {"--state": FOLDER})
        yield Use(["doctor", self.region], {1: "region"})

    def bad(self) -> Iterator[Bad]:
        """Every bad value of every use."""
        for use in self.uses():
            for at, wanted in use.wants.items():
                for value, told in self._values(wanted, use.suffix if wanted == NEW else ""):
                    yield Bad(use.with_value(at, value), told)

    def _values(self, wanted: str, suffix: str) -> Iterator[tuple[object, str]]:
        f = self.folder
        yield "", " is empty. Name a file; perhaps a variable of the shell is not set."
        yield f"plinius-owner-key-1 {'7f' * 32}", " is the text of a key, not a file. Name its file"
        if wanted == KEY_FOLDER:
            for path in (self.world.cfg / "x", f / "loop", f / "no", f / "fifo", f / "taken"):
                yield path, f"{path} has no key files. Put NAME.key"
            return
        yield self.world.cfg / f"x{suffix}", ": Not a directory. "
        yield f / ("n" * 300 + suffix), ": File name too long. "
        if wanted == NEW:
            yield f / f"there{suffix}", " exists already"
            yield f / f"place{suffix}", " exists already"
            yield f / f"loop{suffix}", " exists already"
            yield f / "no" / f"x{suffix}", ": No such file or directory. "
            return
        yield f / "loop", "symbolic links. " if wanted != LOG else ": Not a regular file. "
        if wanted == LOG:
            yield f / "no" / "x", ": No such file or directory. "
            yield f / "taken", ": Is a directory. "
            yield f / "fifo", "Cannot write metrics to"
            yield "/dev/full", ": Not a regular file. "
            return
        yield f / "no", "There is no region" if wanted == "region" else ": No such file"
        if wanted == FOLDER:
            yield self.world.cfg, ": Not a directory. "
            yield f / "fifo", ": Not a directory. "
            yield "/dev/zero", ": Not a directory. "
            return
        yield f / "taken", ": Not a regular file" if wanted == "region" else ": Is a directory. "
        yield f / "fifo", ": Not a regular file. "
        yield "/dev/zero", ": Not a regular file. "
        for name, told in zip(("empty", "garbage", "bom"), BAD_CONTENT[wanted], strict=True):
            yield f / name, told
        for key in self.keys:
            if wanted not in KEYS:
                yield key, "plinius: "
            elif wanted == "owner's key" and key.name in ("sign", "dev.key", "bare"):
                yield key, "holds no owner's key. Name a key file"

    def secrets(self) -> set[str]:
        """Every eight digits of every key."""
        digits = re.compile("[0-9a-f]{64,}")
        texts = [found for key in self.keys for found in digits.findall(key.read_text())]
        return {text[at : at + 8] for text in texts for at in range(0, len(text) - 7)}
