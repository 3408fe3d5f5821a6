"""Threads that run jobs, and that an interrupt (KeyboardInterrupt) at any point leaves usable.

Whatever waits here is one call in C: of a SimpleQueue or of a plain lock. `threading.Event`,
`Condition` and `Semaphore`, and so `queue.Queue` and `concurrent.futures`, are written in Python:
an interrupt inside of them can leave their inner lock held, and every later call waits forever.
"""

import queue
import threading
import weakref
from collections.abc import Callable


class Job:
    """A call that a thread makes once; `error` is what it raised, after `wait`."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.done = False
        self.error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        """Make the call, unless it was made already."""
        if self.done:
            return
        try:
            self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._running.release()

    def wait(self) -> None:
        """Wait until the call has ended. The job must have been submitted."""
        while not self.done:
            if self._running.acquire(timeout=1):
                self._running.release()


class JobThread:
    """A thread that runs its jobs in order. It ends when it is closed, or no longer referenced."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_run_all, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._jobs.put, None)

    def submit(self, job: Job) -> None:
        """Have a job run. A job that is submitted twice is run once."""
        assert self._end.alive, "the thread is closed"
        self._jobs.put(job)

    def wait(self) -> None:
        """Wait until every job that was submitted has ended."""
        last = Job(lambda: None)
        self.submit(last)
        last.wait()

    def close(self) -> None:
        """End the thread after its jobs; a second call does nothing."""
        self._end()
        self._thread.join()


def _run_all(jobs: "queue.SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # or it would stay in memory, with its buffers, until the next one
