"""One job at a time in another thread; an interrupt can neither lose it nor start it twice."""

import threading
from collections.abc import Callable


class _Job:
    """A call to be made once, and its error."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._do()
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()


class Background:
    """A thread that runs one job at a time.

    A job is handed over by one assignment. After an interrupt before it there is no job; after an
    interrupt behind it, `wait` wakes the thread up once more and waits for the job.
    """

    def __init__(self, name: str) -> None:
        self._job: _Job | None = None
        self._closing = False
        self._wake = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def begin(self, do: Callable[[], None]) -> None:
        """Start a job. The last job must have been waited for."""
        assert self._job is None
        self._job = _Job(do)
        self._wake.release()

    def wait(self) -> None:
        """Wait until the job has ended, if there is one; raises what the job raised, once."""
        job = self._job
        if job is None:
            return
        self._wake.release()
        job.ended.wait()
        self._job = None
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """End the thread, after its job."""
        self._closing = True
        self._wake.release()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            job = self._job
            if job is not None and not job.ended.is_set():
                job.run()
            if self._closing:
                return
