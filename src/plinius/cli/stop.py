"""How a command that goes on from where it was is stopped: after its iteration, or at once."""

import os
import signal
import time

from plinius.cli.console import INTERRUPTED

_SAME_INTERRUPT = 0.3
"""Seconds within which a second SIGINT is the same Ctrl-C, passed on by a wrapper."""
_SHOW_CURSOR = b"\x1b[?25h"


class Stop:
    """Set by SIGINT and SIGTERM: training then stops after the current iteration.

    A second Ctrl-C ends the process at once, as a kill does: the newest commit stays. A plain
    attribute: the lock in threading.Event is not safe in a handler of two signals.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._since = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._since and now - self._since > _SAME_INTERRUPT:
                shown = _SHOW_CURSOR if os.isatty(2) else b""
                os.write(
                    2, shown + b"plinius: Stopped at once; the same command resumes the run.\n"
                )
                os._exit(INTERRUPTED)
            self._since = self._since or now
        self.wanted = True
