"""Reads sealed datasets and regions as docs/formats says, without plinius."""

import fcntl
import hmac
import json
import os
import re
import sys
from hashlib import sha256
from itertools import accumulate, pairwise, product
from math import prod
from struct import pack, unpack_from
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# fmt: off
PAGE, CHUNK, SMALL, MANIFEST = 4096, 2097136, 65536, 67108864 + 16
KEY = rb"[ \t]*plinius-owner-key-1[ \t]+([0-9a-fA-F]{64})[ \t]*\r?"
KEY_FILE = re.compile(b"(?:%s\n)*%s(?:\n%s)*" % (r := rb"(?:#[^\n]*|[ \t]*\r?)", KEY, r))
FLOAT8 = "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
ITEM = dict.fromkeys(f"bool uint8 int8 {FLOAT8} bits1x8 bits2x4 bits4x2 bits8".split(), 1)
ITEM |= dict.fromkeys(["int16", "uint16", "float16", "bfloat16", "bits16"], 2)
ITEM |= dict.fromkeys(["int32", "uint32", "float32", "complex32"], 4)
ITEM |= dict.fromkeys(["int64", "uint64", "float64", "complex64"], 8) | {"complex128": 16}
KEYS = {"previous": str, "iteration": int, "identity": dict, "environment": dict, "tensors": list}
KEYS |= {"sealed_by": list, "salts": dict, "values": dict}
DUMP = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode

def need(holds: object, what: str) -> None:
    if not holds:
        raise ValueError(what)

def is_list(value: Any, kind: type) -> bool:  # of strings, or of whole numbers from 0
    return isinstance(value, list) and all(type(x) is kind and x >= kind() for x in value)

def members(pairs: list[tuple[str, Any]]) -> Any:  # mirror.md, JSON: no key twice, no NaN
    need(len(pairs) == len(found := dict(pairs)) and DUMP(found), "a key twice")
    return found

PARSE = json.JSONDecoder(object_pairs_hook=members, parse_constant=int).decode

class Reader:  # the owner's key and a file
    def __init__(self, key_path: str, path: str) -> None:  # owner-key.md, The file
        with open(key_path, "rb") as file:
            info, text = os.fstat(file.fileno()), file.read(PAGE + 1)
        need(info.st_mode & 0o170077 == 0o100000 and info.st_uid in (0, os.geteuid()), "key file")
        found: Any = KEY_FILE.fullmatch(text)
        need(found and len(text) <= PAGE, "not one key line")
        self.owner, self.fd = bytes.fromhex(found[1].decode()), os.open(path, os.O_RDONLY)
        self.size, self.id = os.fstat(self.fd).st_size, self.derive(b"", b"key-id", 8)
    def read(self, at: int, size: int) -> bytes:
        need(len(data := os.pread(self.fd, size, at)) == size, "the file is too short")
        return data
    def derive(self, salt: bytes, purpose: bytes, size: int = 32) -> bytes:
        secret = hmac.digest(salt or bytes(32), self.owner, "sha256")
        return hmac.digest(secret, b"plinius/1/" + purpose + b"\1", "sha256")[:size]
    def unseal(self, key: bytes, n: int, at: int, size: int, bound: bytes, what: str) -> bytes:
        try:
            return AESGCM(key).decrypt(n.to_bytes(12, "big"), self.read(at, size), bound)
        except InvalidTag:
            raise ValueError(f"{what} does not open") from None
    def dataset(self) -> str:  # sealed-dataset.md, What a reader refuses; then every record
        head, size, digest = self.read(0, 256), 16, sha256()
        version, m, name, salt, key_id, count = unpack_from("<II16s32s8sQ", head, 8)
        need(version == 1 and 17 <= m <= 1 << 20 and 1 <= count <= 1 << 40, "dataset header")
        for (code, n), shape_at in zip((head[84:86], head[86:88]), (88, 120), strict=True):
            shape = unpack_from("<8I", head, shape_at)
            need(1 <= code <= 11 and n <= 8 and not any(shape[n:]), "dtype or dimensions")
            need(all(shape[:n]) or (code, n) == (1, 1), "a dimension is 0")
            size += prod(shape[:n]) * (1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 8)[code - 1]
        need(17 <= size <= (1 << 26) + 16 and not any(head[152:240]), "record size or reserved")
        need(self.size == 256 + m + count * size, "the dataset has another length")
        need(key_id == self.id, f"sealed with key {key_id.hex()}, this is {self.id.hex()}")
        key, records = self.derive(salt, b"dataset-header"), self.derive(salt, b"dataset-records")
        self.unseal(key, 0, 240, 16, head[:240], "the header")
        meta: Any = PARSE(self.unseal(key, 1, 256, m, head, "the class list").decode())
        need(is_list(meta["class_names"], str), "the class names are not a list of strings")
        for i in range(count):
            at, bound = 256 + m + i * size, pack("<I16sQQ", 1, name, count, i)
            digest.update(self.unseal(records, i, at, size, bound, f"record {i}"))
        return f"dataset {name.hex()} {count} records, {digest.hexdigest()}"
    def region(self) -> str:  # region.md, Header, State word, Lock; then the mirror
        fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        head = self.read(0, PAGE)
        version, name, t, check, state = unpack_from("<I4x16sQ24s8s", head, 8)
        need(head[:8] == b"PLNSRGN\n", "neither a sealed dataset nor a region")
        need(version == 1, f"a region of version {version}, not 1")
        need(sha256(head[:40]).digest()[:24] == check and not any(head[12:16] + head[72:]), "head")
        need(t % PAGE == 0 and 1 << 14 <= t <= 1 << 26 and PAGE + 2 * t <= self.size, "twin bytes")
        need(state in (b"IDLE\0\0\0\0", b"MUTATING", b"COPYING\0"), "the state word is no state")
        twin = self.read(PAGE + t * (state == b"MUTATING"), t)
        magic, end, length = unpack_from("<8sQQ", twin)  # from here: region.md, Heap
        need(magic == b"PLNSHEAP" and t == length and not any(twin[24:64]), "heap header")
        need(end % PAGE == 0 and PAGE + 2 * t <= end <= self.size, "region bytes")
        at, bodies = 4160, {}
        while at < t:
            block, state = unpack_from("<Q8s", twin, at)
            need(block % 16 == 0 and 32 <= block <= t - at, "a block of impossible size")
            need(state in (b"USED\0\0\0\0", b"FREE\0\0\0\0"), "a block neither used nor free")
            bodies[at + 16], at = block - 16 if state[:1] == b"U" else -1, at + block
        roots, extents = self.entries(twin[64:2112]), self.entries(twin[2112:4160])
        need(all(n <= bodies.get(a, -1) for a, n in roots.values()), "a root that names no block")
        spans = pairwise([(PAGE, 2 * t), *sorted(extents.values()), (end, 0)])
        need(all(a + n <= b and b % PAGE == 0 < n for (a, n), (b, _) in spans), "a bad extent")
        mirror = extents.get(b"mirror")
        return f"region {name.hex()}, {self.mirror(*mirror) if mirror else 'no mirror'}"
    def entries(self, table: bytes) -> Any:  # region.md, Heap
        rows = [table[i : i + 64] for i in range(0, 2048, 64) if any(table[i : i + 64])]
        used = {row[:40].rstrip(b"\0"): unpack_from("<QQ", row, 40) for row in rows}
        named = all(name and 0 not in name and name.isascii() for name in used)
        need(named and len(used) == len(rows) and not any(any(row[56:]) for row in rows), "entries")
        return used
    def mirror(self, start: int, length: int) -> str:  # mirror.md, What a reader checks
        head = self.read(start, PAGE)
        magic, version, run, key_id, s, r, base = unpack_from("<8sI4x16s8sQQQ", head)
        need((magic, version) == (b"PLNSMIRR", 3), "the mirror's magic or version")
        need(length == PAGE + 2 * s and not any(head[12:16] + head[64:]), "the mirror's header")
        need(s % PAGE == r % PAGE == 0 and PAGE <= r <= s - PAGE and base < 1 << 40, "its sizes")
        need(key_id == self.id, f"sealed with key {key_id.hex()}, this is {self.id.hex()}")
        low, number = sorted(self.counter(i, start + PAGE + i * s, run) for i in (0, 1))
        if number == base == 0:
            return "no commit"
        need(number == low + 1 > base, "commits that do not follow each other")
        at, commit = start + PAGE + number % 2 * s, f"commit {number} in the mirror"
        salt, m = unpack_from("<32sQ", slot := self.read(at, 128), 64)
        need(not any(slot[8:64] + slot[104:]) and 16 <= m <= min(r, MANIFEST), f"slot of {commit}")
        key, bound = self.derive(salt, b"mirror"), pack("<I16sQI", 3, run, number, 0)
        manifest = PARSE(self.unseal(key, 0, at + PAGE, m, bound, commit).decode())
        sizes, sealers = self.checked(manifest, number, base, s)
        chunks, plain, keys = self.chunks(sizes), bytearray(), {number: key}
        for x, text in manifest["salts"].items():
            keys[int(x)] = self.derive(bytes.fromhex(text), b"mirror")
        ends = [*accumulate((-(-(n + 16) // PAGE) * PAGE for n in chunks), initial=PAGE + r)]
        need(len(sealers) == len(chunks) and ends[-1] <= s, f"the chunks of {commit}")
        for i, (x, n, offset) in enumerate(zip(sealers, chunks, ends[:-1], strict=True), 1):
            bound = pack("<I16sQI", 3, run, x, i)
            plain += self.unseal(keys[x], i, at + offset, n + 16, bound, f"chunk {i} of {commit}")
        return f"iteration {manifest['iteration']}, digest {self.digest(manifest, sizes, plain)}"
    def counter(self, slot: int, at: int, run: bytes) -> int:  # mirror.md, Commit word
        number, check = int.from_bytes((word := self.read(at, 8))[:5], "little"), word[5:]
        right = check == sha256(pack("<I16sQ", 3, run, number)).digest()[:3] and number > 0
        need(not any(word) or (right and number % 2 == slot), f"the commit word of slot {slot}")
        return number
    def chunks(self, sizes: list[int]) -> list[int]:  # mirror.md, Chunks: plaintext bytes of each
        found, room = [min(CHUNK, n - a) for n in sizes if n > SMALL for a in range(0, n, CHUNK)], 0
        for n in (n for n in sizes if 0 < n <= SMALL):
            found, room = (found, room) if n <= room else ([*found, 0], CHUNK)
            found[-1], room = found[-1] + n, room - n
        return found
    def checked(self, found: Any, number: int, base: int, s: int) -> Any:  # mirror.md, Manifest
        types, tensors = {key: type(value) for key, value in found.items()}, found["tensors"]
        need(types in (KEYS, KEYS | {"values": type(None)}), "the manifest's keys or types")
        for name, dtype, shape, order in tensors:
            right = isinstance(name, str) and dtype in ITEM and is_list(shape, int)
            axes = right and (order is None or (is_list(order, int) and sorted(order)))
            need(right and axes in (True, [*range(len(shape))]), f"the tensor {name}")
        sizes = [prod(shape) * ITEM[dtype] for _, dtype, shape, _ in tensors]
        own = found["values"] is None  # then they are the last tensor
        right = not own or tensors[-1] == ["~values", "uint8", sizes[-1:], None]
        need(right and (not own or sizes[-1] > SMALL), "there are no values")
        names = {"~values", *(name for name, *_ in tensors)}
        need(len(names) == len(tensors) + 1 - own, "a name of two tensors")
        for x, n in found["sealed_by"]:
            right = is_list([x, n], int) and base < x <= number and 0 < n <= s
            need(right and x % 2 == number % 2, "a commit that was never in this slot")
        salts, used = found["salts"], {x for x, _ in found["sealed_by"]} - {number}
        need({*salts} == {str(x) for x in used}, "the salts are not those of the chunks")
        digits = all(re.fullmatch("[0-9a-f]{64}", x) for x in [found["previous"], *salts.values()])
        need(digits, "a salt or digest that is not 64 hex digits")
        need(0 <= found["iteration"] < 1 << 63 and sum(sizes) <= s, "iteration, or sizes")
        return sizes, [x for x, n in found["sealed_by"] for _ in range(n)]
    def digest(self, manifest: Any, sizes: list[int], plain: Any) -> str:  # mirror.md
        tensors, values, data, at = manifest["tensors"], manifest["values"], {}, 0
        for i in sorted(range(len(sizes)), key=lambda i: sizes[i] <= SMALL):
            data[i], at = plain[at : at + sizes[i]], at + sizes[i]
        if values is None:
            values = PARSE(data.pop(len(sizes) - 1).decode())
            need(isinstance(values, dict), "the values are no object")
        parts = [DUMP({"iteration": manifest["iteration"], "values": values}).encode()]
        for i in sorted(data, key=lambda i: tensors[i][0]):
            parts += [DUMP(tensors[i][:3]).encode(), self.items(data[i], *tensors[i][1:])]
        framed = b"".join(pack("<Q", len(part)) + part for part in parts)
        return sha256(b"plinius state 1\n" + framed).hexdigest()
    def items(self, data: bytes, dtype: str, shape: list[int], order: Any) -> bytes:
        if not data or order is None or order == sorted(order):  # mirror.md, Tensors
            return data
        size = ITEM[dtype]
        steps = {d: size * prod(shape[e] for e in order[i + 1 :]) for i, d in enumerate(order)}
        places = product(*(range(0, n * steps[d], steps[d]) for d, n in enumerate(shape)))
        return b"".join(data[at : at + size] for at in map(sum, places))

if __name__ == "__main__":
    try:
        reader = Reader(*sys.argv[1:3])
        print(reader.dataset() if reader.read(0, 8) == b"PLINDATA" else reader.region())
    except (ValueError, TypeError, AttributeError, LookupError, OSError, RecursionError) as error:
        sys.exit(f"{sys.argv[2]}: {error}")
