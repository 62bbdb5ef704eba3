"""Changes of a learner, one after the other in one thread: each on a copy, saved whole, and only then answered from."""

from __future__ import annotations

import queue
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from promptcl.errors import UserError
from promptcl.learner import Learner
from promptcl.runtime.heap import hand_back
from promptcl.serve.keeper import Keeper
from promptcl.serve.limits import Limits, Refused
from promptcl.serve.standing import Known, Standing

State = Literal["waiting", "running", "done", "failed"]
_IDLE = 1.0  # seconds without work after which the thread looks whether others have written


class Stopped(BaseException):
    """A job was given up; not an Exception, so that nothing on the way swallows it."""


def _nothing() -> None:
    """Do nothing."""


@dataclass
class Job:
    """A change that was asked for, and how far it is; the learner tells it of each step."""

    what: str
    change: Callable[[Learner, Job], dict[str, Any]] | None
    """Changes a learner and returns what is to be told; {} where it changed nothing."""
    looks: int = 0
    """How often images will be looked at, about."""
    version: str | None = None
    """The learner that it is meant for; None: any."""
    release: Callable[[], None] = _nothing
    """Called when it has ended."""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = "waiting"
    doing: str = "waiting"
    progress: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    status: int = 202
    stop: bool = False
    _seen: int = 0
    _steps: int = 0
    _of: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self.state in ("done", "failed")

    def heard(self) -> None:
        """An image is looked at. Raises Stopped where the job was given up."""
        if self.stop:
            raise Stopped
        self._seen += 1
        if not self._of:
            self.doing, self.progress = "looking at images", min(0.99, self._seen / max(1, self.looks))

    def stage(self, number: int, steps: int) -> None:
        """A stage of training begins."""
        self._steps, self._of = 0, max(1, steps)
        self.doing, self.progress = f"training, stage {number + 1}", 0.0

    def step(self) -> None:
        """A step of training is done."""
        if self.stop:
            raise Stopped
        self._steps += 1
        self.progress = min(0.99, self._steps / self._of)

    def told(self) -> dict[str, Any]:
        """The job as JSON."""
        about = {"id": self.id, "what": self.what, "state": self.state}
        if not self.ended:
            return about | {"doing": self.doing, "progress": round(self.progress, 3)}
        return about | ({"error": self.error} if self.state == "failed" else {"result": self.result})


class Worker:
    """The thread that changes the learner."""

    def __init__(self, keeper: Keeper, limits: Limits) -> None:
        """Start it."""
        self._keeper, self._limits = keeper, limits
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a signal calls `stop` in the thread that may be in `submit`
        self._jobs: dict[str, Job] = {}
        self.closing = False
        self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Put a job into the queue. Raises Refused (429) where too many wait."""
        with self._lock:
            if self.closing:
                raise Refused("this server is about to end; send it again later", 409)
            if sum(not other.ended for other in self._jobs.values()) > self._limits.waiting_jobs:
                raise Refused("too many changes wait already; send this one again when they are done", 429)
            ended = [key for key, other in self._jobs.items() if other.ended]
            for key in ended[: max(0, len(ended) - self._limits.kept_jobs + 1)]:
                del self._jobs[key]
            self._jobs[job.id] = job
        self._queue.put(job)
        return job

    def find(self, name: str) -> Job:
        """The job of this id. Raises Refused (404)."""
        if (job := self._jobs.get(name)) is None:
            raise Refused("there is no job of this id; jobs are forgotten when the server ends", 404)
        return job

    @property
    def jobs(self) -> list[Job]:
        """All jobs that are remembered, the oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def stop(self) -> None:
        """Give up all jobs; what runs ends at the next image or step, and nothing of it is kept."""
        with self._lock:
            self.closing = True
            for job in self._jobs.values():
                job.stop = True

    def close(self) -> None:
        """Give up all jobs and wait for the end of the one that runs."""
        self.stop()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                job = self._queue.get(timeout=_IDLE)
            except queue.Empty:
                self._keeper.follow()
                continue
            if job is None:
                return
            ended = self._do(job)
            job.release()
            job.change, job.release = None, _nothing  # which held the images
            hand_back()
            job.state = ended

    def _do(self, job: Job) -> State:
        """Run a job, note what came of it, and return how it ended."""
        try:
            if job.stop:
                raise Stopped
            job.state = "running"
            job.result, job.status = self._changed(job), 200
            return "done"
        except Stopped:
            return self._fail(job, "this was given up before it was done; nothing of it was kept", 409)
        except UserError as error:
            return self._fail(job, str(error), error.status if isinstance(error, Refused) else 400)
        except (MemoryError, RuntimeError) as error:
            traceback.print_exc(file=sys.stderr)
            why = (str(error).splitlines() or ["no memory"])[0][:200]
            return self._fail(job, f"it failed and nothing was kept: {why}", 500)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return self._fail(
                job, f"it failed and nothing was kept ({type(error).__name__}); report this as a bug", 500
            )

    @staticmethod
    def _fail(job: Job, sentence: str, status: int) -> State:
        job.error, job.status = " ".join(sentence.split()), status
        return "failed"

    def _changed(self, job: Job) -> dict[str, Any]:
        """Change a copy of what is in the store, save it, and have it answer from now on."""
        assert job.change is not None
        with self._keeper.lock():
            learner = self._keeper.load()
            if job.version not in (None, learner.ancestors[-1]):
                raise Refused("the learner has changed meanwhile; look at it again, then repeat", 412)
            before = self._keeper.known
            if before.version != learner.ancestors[-1]:
                before = self._keeper.renew()
            result = job.change(learner, job)
            if result.pop("unchanged", False):
                return result | _compared(before.standing, before)
            job.doing = "saving"
            learner.save(self._keeper.store)
            try:  # what answers is what was written, and holds nothing of the images
                return result | _compared(before.standing, self._keeper.renew())
            except Exception as error:
                sentence = f"it was saved, but cannot be answered from ({error}); start the server anew"
                raise Refused(sentence, 500) from error


def _compared(before: Standing | None, after: Known) -> dict[str, Any]:
    """Right answers on images left out, before a change and after it."""
    now = after.standing
    return {
        "version": after.version,
        "before": None if before is None else {"right": before.right, "images": before.images},
        "after": None if now is None else {"right": now.right, "images": now.images},
        "classes": [
            {"name": name, "before": before and before.by_class.get(name), "after": now and now.by_class.get(name)}
            for name in after.learner.classes
        ],
    }
