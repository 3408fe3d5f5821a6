"""One job at a time in another thread; an interrupt can neither lose it nor start it twice."""

import os
from collections.abc import Callable

from plinius.threads import Job, JobThread


class Background:
    """A thread that runs one job at a time.

    A job is handed over by one assignment. After an interrupt before it there is no job; after an
    interrupt behind it, `wait` submits the job once more, and it is still run once.
    """

    def __init__(self, name: str) -> None:
        self._job: Job | None = None
        self._process = os.getpid()
        self._thread = JobThread(name)

    def begin(self, call: Callable[[], None]) -> None:
        """Start a job. The last job must have been waited for."""
        assert self._job is None
        self._job = Job(call)
        self._thread.submit(self._job)

    def wait(self) -> None:
        """Wait until the job has ended, if there is one; raises what the job raised, once.

        In a forked child, which has no such thread, there is nothing to wait for.
        """
        job = self._job
        if job is None or os.getpid() != self._process:
            return
        self._thread.submit(job)
        job.wait()
        self._job = None
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """End the thread, after its job."""
        self._thread.close()
