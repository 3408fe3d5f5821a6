"""One job at a time in another thread; an interrupt can neither lose it nor start it twice."""

import os
import queue
import threading
from collections.abc import Callable


class _Job:
    """A call to be made once, and its error."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self.done = False
        self.error: BaseException | None = None
        self._ended = threading.Lock()
        self._ended.acquire()

    def run(self) -> None:
        try:
            self._do()
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._ended.release()

    def wait(self) -> None:
        """Return when it has ended. An interrupt may leave with the lock: `done` stays true."""
        while not self.done:
            self._ended.acquire(timeout=1)


class Background:
    """A thread that runs one job at a time.

    A job is handed over by one assignment. After an interrupt before it there is no job; after an
    interrupt behind it, `wait` wakes the thread up once more and waits for the job. What is waited
    on is done in C by a single call: an interrupt within threading.Event or threading.Semaphore
    would leave their inner lock held for good.
    """

    def __init__(self, name: str) -> None:
        self._job: _Job | None = None
        self._closing = False
        self._process = os.getpid()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def begin(self, do: Callable[[], None]) -> None:
        """Start a job. The last job must have been waited for."""
        assert self._job is None
        self._job = _Job(do)
        self._wake.put(None)

    def wait(self) -> None:
        """Wait until the job has ended, if there is one; raises what the job raised, once.

        In a forked child, which has no such thread, there is nothing to wait for.
        """
        job = self._job
        if job is None or os.getpid() != self._process:
            return
        self._wake.put(None)
        job.wait()
        self._job = None
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """End the thread, after its job."""
        self._closing = True
        self._wake.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while True:
            self._wake.get()
            job = self._job
            if job is not None and not job.done:
                job.run()
            if self._closing:
                return
