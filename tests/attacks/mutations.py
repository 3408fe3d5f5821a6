"""What a host does to bytes: it changes, cuts, swaps and repeats them, and forges public checks."""

import hashlib
import os
import random
import re
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plinius.slots.layout import commit_word

PAGE = 4096
_WORDS = (0, 1, 2, 15, 16, 255, 4095, 4096, 65536, 2**20 + 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
          2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
_NUMBERS = (b"0", b"1", b"-1", b"2", b"3", b"7", b"64", b"1e9", b"1e999", b"nan", b"0x10", b"-0",
            b"1048576", b"1048577", b"2147483648", b"9223372036854775808", b"9" * 40, b"",
            b"1,1,1", b"\xff", b"\x00", "\N{SUPERSCRIPT TWO}".encode())  # fmt: skip


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes of any kind; it may be cut short or made longer."""
    raw = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(raw, rng)
    return bytes(raw)


def _change(raw: bytearray, rng: random.Random) -> None:
    if not raw:
        raw += rng.randbytes(rng.randrange(1, 100))
        return
    # Headers are at the front: half of the changes are there.
    at = rng.randrange(len(raw) if rng.random() < 0.5 else min(len(raw), 512))
    other, length = rng.randrange(len(raw)), rng.randrange(1, 65)
    match rng.randrange(10):
        case 0 | 1 | 2:
            raw[at] ^= 1 << rng.randrange(8)
        case 3:  # a length or a count that is not so
            size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            word = rng.choice((*_WORDS, len(raw), len(raw) + 1)) % 256**size
            at = at // size * size if rng.random() < 0.8 else at
            raw[at : at + size] = word.to_bytes(size, order)
        case 4:
            del raw[at:]
        case 5:
            raw += rng.choice((bytes, rng.randbytes))(rng.randrange(1, 9000))
        case 6:
            start = at // PAGE * PAGE if len(raw) > 2 * PAGE else at
            end = min(start + (PAGE if len(raw) > 2 * PAGE else length), len(raw))
            raw[start:end] = bytes(end - start)
        case 7:
            end = min(len(raw) - at, len(raw) - other, length)
            one, two = raw[at : at + end], raw[other : other + end]
            raw[at : at + end], raw[other : other + end] = two, one
        case 8:
            raw[at : at + length] = rng.randbytes(length)
        case _:
            raw[at:at] = raw[other : other + length]


def mutated_text(whole: bytes, rng: random.Random) -> bytes:
    """As `mutated`, or with numbers, words and lines of the text changed."""
    if rng.random() < 0.3:
        return mutated(whole, rng)
    lines = whole.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 | 1 | 2:
                number = rng.choice(_NUMBERS)
                before, _, after = re.split(rb"([0-9.]+|$)", lines[at], maxsplit=1)
                lines[at] = before + number + after
            case 3:
                lines.insert(at, lines[other])
            case 4:
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                name, _, value = lines[at].partition(b"=")
                lines[at] = name + b"=" + lines[other].partition(b"=")[2] if value else b"[" + name
    return b"\n".join(lines)


def mutated_region(whole: bytes, rng: random.Random) -> bytes:
    """A region with other bits, words or pages, most of them where they decide something."""
    raw, kind = bytearray(whole), rng.randrange(9)
    mirror = whole.index(b"PLNSMIRR")
    zones = [(0, 4096), (4096, 8192), (4096, 4096 + 65536), (mirror, mirror + 4096),
             (mirror + 4096, mirror + 8192), (mirror, len(whole)), (0, len(whole))]  # fmt: skip
    words = [*_WORDS, len(whole), mirror]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(*rng.choice(zones))
        page = at // PAGE * PAGE
        if kind < 3:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind < 5:
            word = rng.choice([*words, rng.getrandbits(64)])
            raw[at // 8 * 8 : at // 8 * 8 + 8] = word.to_bytes(8, "little")
        elif kind < 6:
            raw[page : page + PAGE] = bytes(len(raw[page : page + PAGE]))
        else:
            one, other = (rng.randrange(len(whole) // PAGE) * PAGE for _ in range(2))
            kept = raw[one : one + PAGE]
            raw[one : one + PAGE], raw[other : other + PAGE] = raw[other : other + PAGE], kept
    if rng.random() < 0.5:
        recheck(raw, mirror, rng)
    if kind == 7:
        del raw[rng.randrange(len(raw)) :]
    return bytes(raw) + (bytes(rng.randrange(1, 9000)) if kind == 8 else b"")


def recheck(raw: bytearray, mirror: int, rng: random.Random) -> None:
    """Make every public check hold again, as a host can, so that what follows is read."""
    raw[40:64] = hashlib.sha256(raw[:40]).digest()[:24]
    run_id = bytes(raw[mirror + 16 : mirror + 32])
    size = int.from_bytes(raw[mirror + 40 : mirror + 48], "little")
    newest = rng.choice([2, 3, 4, 5, 6, 2**39])
    for counter in (newest, newest - 1):
        at = mirror + 4096 + counter % 2 * size
        if at + 8 <= len(raw):
            raw[at : at + 8] = commit_word(run_id, counter).to_bytes(8, "little")
    if rng.random() < 0.5:  # the twins as a transaction left them, or alike
        raw[64:72] = rng.choice([b"IDLE\0\0\0\0", b"MUTATING", b"COPYING\0"])
        raw[4096 + 65536 : 4096 + 2 * 65536] = raw[4096 : 4096 + 65536]


@contextmanager
def flipping(path: Path, seed: int) -> Iterator[None]:
    """Another thread writes to the file all the time, as a host can."""
    stop, rng, size = threading.Event(), random.Random(seed), path.stat().st_size

    def flip() -> None:
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(rng.randrange(size))
                file.write(bytes([rng.randrange(256)]))
                time.sleep(0)

    host = threading.Thread(target=flip)
    host.start()
    try:
        yield
    finally:
        stop.set()
        host.join()


def first_seed() -> int:
    """The seed of a fuzz, which PLINIUS_TEST_SEED repeats or changes."""
    return int(os.environ.get("PLINIUS_TEST_SEED", "1"))


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
