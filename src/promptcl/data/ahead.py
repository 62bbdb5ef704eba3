"""Read images in threads before they are asked for, so that a step does not wait for them.

Decoders release Python's lock, so threads decode at the same time. What is read does not depend on who reads it, nor on
the number of threads: a plan only says what will be asked for soon.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from torch import Tensor

from promptcl.data.images import ImageSet, Source
from promptcl.errors import UserError

Place = tuple[Source, int]
"""A source and a row in it, as `ImageSet.place` gives them."""
MOST_BYTES = 2**28
"""Of images that were read ahead and not yet asked for, before no more are."""
_LEAST = 64  # images
_Key = tuple[int, int]
_NAME = "promptcl-decode"
_ends = False  # whether the program does


@dataclass(eq=False)
class _Job:
    """An image that is read, or will be."""

    source: Source
    row: int
    begun: bool = False
    result: Tensor | BaseException | None = None
    bells: list[SimpleQueue[None]] = field(default_factory=list)
    """Of those who wait for the result."""

    @property
    def nbytes(self) -> int:
        return self.result.nbytes if isinstance(self.result, Tensor) else 0


class Ahead:
    """Reads images in worker threads, those of a plan ahead; one thread asks for them.

    A worker ends when there is nothing left to read, and before the program does, with the image at hand. Nothing here
    is a threading.Condition or an Event: Ctrl-C may come when one has just been locked, and it stays locked.
    """

    def __init__(self, workers: int | None, most_bytes: int = MOST_BYTES) -> None:
        """workers: number of threads; 0: whoever asks for an image reads it; None: one for each core."""
        self.workers = usual_workers() if workers is None else workers
        self._most = most_bytes
        self._lock = threading.Lock()
        self._plans: dict[str, dict[_Key, _Job]] = {}
        self._jobs: dict[_Key, _Job] = {}  # of all plans
        self._asked: list[_Job] = []  # what somebody waits for
        self._running, self._pid = 0, os.getpid()

    def __reduce__(self) -> tuple[type[Ahead], tuple[int, int]]:
        """A copy, as of a learner that is copied, has plans of its own."""
        return Ahead, (self.workers, self._most)

    def expect(self, plan: str, places: Iterable[Place]) -> None:
        """Begin to read images that will be asked for in this order; they take the place of those of the same plan.

        What was read of them stays until the plan changes, so that it may be asked for again.
        """
        if not self.workers:
            return
        with self._lock:
            slow = [place for place in places if _is_slow(*place)]
            self._plans[plan] = {(id(source), row): self._job(source, row) for source, row in slow}
            self._jobs = {key: job for jobs in self._plans.values() for key, job in jobs.items()}
            self._start()

    def forget(self) -> None:
        """Read nothing ahead any more, and drop what was."""
        with self._lock:
            self._plans, self._jobs = {}, {}

    def images(self, images: ImageSet, index: Sequence[int]) -> list[Tensor]:
        """The images at `index`, uint8 (3, H, W). Raises UserError for the first of them that does not decode."""
        found = self.each([images.place(int(i)) for i in index])
        if bad := next((one for one in found if isinstance(one, UserError)), None):
            raise bad
        return [one for one in found if not isinstance(one, UserError)]

    def each(self, places: Sequence[Place]) -> list[Tensor | UserError]:
        """The image at each place, a source and a row there, or the UserError that says why it does not decode."""
        jobs: list[_Job | None] = [None] * len(places)
        bell: SimpleQueue[None] = SimpleQueue()
        if self.workers:
            with self._lock:
                jobs = [self._job(*place) if _is_slow(*place) else None for place in places]
                asked = [job for job in jobs if job is not None and job.result is None]
                for job in asked:
                    job.bells.append(bell)
                self._asked += asked
                self._start()
                if asked and not self._running:  # the system starts no more threads
                    jobs = [None] * len(places)
        try:
            return [_read(*place) if job is None else _wait(job, bell) for place, job in zip(places, jobs, strict=True)]
        except BaseException:  # Ctrl-C among them: nothing is left to do for workers
            self.forget()
            raise
        finally:
            with self._lock:
                self._asked = [job for job in self._asked if bell not in job.bells]

    def _job(self, source: Source, row: int) -> _Job:
        """The job that reads an image: that of a plan, or a new one."""
        key = (id(source), row)
        return self._jobs.get(key) or _Job(source, row)

    def _next(self) -> _Job | None:
        """The job that comes next; None where there is none, or what was read ahead has taken all of its room."""
        todo = next((job for job in self._asked if not job.begun), None)
        if todo is None and sum(job.nbytes for job in self._jobs.values()) < self._most:
            todo = next((job for job in self._jobs.values() if not job.begun), None)
        return todo

    def _start(self) -> None:
        """Start as many workers as there is work for."""
        if self._pid != os.getpid():  # a process that was forked has none of its parent's
            self._running, self._pid = 0, os.getpid()
        waiting = sum(not job.begun for job in [*self._asked, *self._jobs.values()])
        while self._running < min(self.workers, waiting):
            self._running += 1
            try:
                threading.Thread(target=self._work, name=_NAME, daemon=True).start()
            except BaseException as error:
                self._running -= 1
                if not isinstance(error, RuntimeError):  # which says that there are too many threads
                    raise
                return

    def _work(self) -> None:
        while True:
            with self._lock:
                job = None if _ends else self._next()
                if job is None:
                    self._running -= 1
                    return
                job.begun = True
            try:
                result: Tensor | BaseException = job.source.read(job.row)
            except BaseException as error:  # whoever asks for the image gets it
                result = error
            with self._lock:
                job.result, bells = result, job.bells
            for bell in bells:
                bell.put(None)


def _wait(job: _Job, bell: SimpleQueue[None]) -> Tensor | UserError:
    """What became of a job; the bell rings after each one that is done."""
    while job.result is None:
        bell.get()
    if isinstance(job.result, BaseException) and not isinstance(job.result, UserError):
        raise job.result
    return job.result


def _read(source: Source, row: int) -> Tensor | UserError:
    try:
        return source.read(row)
    except UserError as error:
        return error


def _is_slow(source: Source, row: int) -> bool:
    """Whether reading an image is worth a thread: what is in memory is not."""
    asked = getattr(source, "is_slow", None)
    return asked is not None and bool(asked(row))


def batches_ahead(size: int) -> int:
    """How many batches of so many images are read ahead: one, or enough small ones to keep all workers busy."""
    return max(1, _LEAST // size)


def usual_workers() -> int:
    """One worker for each core that this process may use; processes on one machine that train together share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    together = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, min(cores, 16) // (int(together) if together.isdigit() and int(together) else 1))


@atexit.register
def _end() -> None:
    """Wait for the workers: one that wakes up while Python is taken down would end the process with an abort."""
    global _ends
    _ends = True
    for thread in threading.enumerate():
        if thread.name == _NAME:
            thread.join(5)
