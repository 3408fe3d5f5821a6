"""Prove that your own protocol on persistent memory survives a stop at any instant.

`SimulatedMedium` is a Medium in ordinary memory. It records each store, flush, drain and fence, and
computes the images that a power cut may leave. `check_every_stop` runs a protocol on it once, and
gives such images of every moment to a check, which recovers from them. For example, 16 bytes that
are replaced as a whole, by two copies and a word that says which one counts:

>>> from plinius.testing import SimulatedMedium, check_every_stop
>>> def replace(medium, data, durable_first=True):
...     word = int.from_bytes(medium.read(0, 8), "little")
...     medium.write(64 + 64 * (1 - word), data)
...     if durable_first:
...         medium.fence()
...     medium.store_word(0, 1 - word)
...     medium.flush(0, 8)
...     medium.fence()
>>> def content(image):
...     word = int.from_bytes(image[:8], "little")
...     return image[64 + 64 * word :][:16]
>>> def check(image, finished):
...     assert content(image) == b"n" * 16 or (not finished and content(image) == bytes(16))
>>> tally = check_every_stop(SimulatedMedium(4096), lambda m: replace(m, b"n" * 16), check)
>>> tally.stops, tally.exhaustive
(7, True)

Without the first fence the word may become durable before the data:

>>> check_every_stop(SimulatedMedium(4096), lambda m: replace(m, b"n" * 16, False), check)
Traceback (most recent call last):
...
AssertionError...

`kill_everywhere` stops only the process: everything that was stored is still visible to the next
one, durable or not. `PlainMedium` records nothing; use it to recover from an image quickly.
"""

from plinius.testing.every_stop import Check, Protocol, Tally, check_every_stop, kill_everywhere
from plinius.testing.simulated_medium import PlainMedium, SimulatedMedium

__all__ = [
    "SimulatedMedium",
    "check_every_stop",
    "kill_everywhere",
    "PlainMedium",
    "Tally",
    "Protocol",
    "Check",
]
