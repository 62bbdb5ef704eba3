"""A classifier that grows: learn, evaluate, predict. Users give and get class names. K classes so far, N images."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from promptcl import store
from promptcl.backbone import Backbone
from promptcl.backbone.weights import first_line
from promptcl.config import Config
from promptcl.data import SCENARIOS, ImageSet
from promptcl.data.checked import check_images
from promptcl.data.inputs import ImagesLike, labelled, unlabelled
from promptcl.data.names import LabelsLike
from promptcl.errors import UserError
from promptcl.learner.calibration import Calibration, measure
from promptcl.learner.ledger import Ledger
from promptcl.learner.mending import Mending
from promptcl.learner.records import (
    Evaluation,
    LearnRecord,
    Prediction,
    by_class,
    check_names,
    one_class,
    predictions,
)
from promptcl.learner.sifting import distinct
from promptcl.methods._base import Method, TaskView, load_method
from promptcl.runtime import processes
from promptcl.runtime.device import pick_device, with_precision
from promptcl.runtime.heap import hand_back
from promptcl.runtime.seeding import task_generator
from promptcl.store import Saved, TaskRecord
from promptcl.training import Batches, Memory, PastTask, PresentTask, Progress, Weak
from promptcl.training.exchange import joined


class Learner(Mending):
    """A frozen backbone, a method, and the class names in the order they were learned."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        """Create an empty learner; `backbone` is frozen and may be shared by several, None loads that of the config.

        Raises UserError: weights, backbone or device that cannot be used; a method that needs to know where tasks end
        in a stream that never says it.
        """
        self.device = pick_device(config.device)
        options = load_method(config.method["name"]).Options(**{k: v for k, v in config.method.items() if k != "name"})
        complete = {"name": config.method["name"], **options.model_dump(mode="json")}
        self.config = config = with_precision(config, self.device).model_copy(update={"method": complete})
        self.scenario = SCENARIOS[config.scenario]
        self.backbone = (backbone or Backbone.create(config.backbone)).to(self.device)
        self.method = self._new_method()
        if not self.scenario.boundaries:  # a method that needs task numbers is refused now, before any write
            past = PastTask(config.seed, 0, 0, 0, boundaries=False, asks=f"method.name={complete['name']}")
            copy.deepcopy(self.method).grow(cast(TaskView, past))
        self.classes, self.history, self.changes, self.notes, self.ledger = [], [], [], {}, Ledger()
        self.ancestors: list[str] = []
        """Checksums of the stores that this learner was loaded from and saved to, the last one last."""
        self._whole, self.moments = True, {}
        self.memory = Memory(config.memory.per_class, config.memory.total, config.memory.rule)
        self.batches = Batches(self.backbone, config, self.device, Weak(self._query), config.data.cache_mb * 2**18)

    @classmethod
    def load(
        cls, folder: Path | str, overrides: Sequence[str] = (), backbone: Backbone | None = None, trust: bool = False
    ) -> Learner:
        """Load the learner that was saved in `folder`. Arguments as of `store.load`; backbone as of the constructor.

        Raises:
            UserError: as `store.load`; weights that are missing or are not those it was learned with.
        """
        saved = store.load(Path(folder), overrides, trust)
        try:
            learner = cls(saved.config, backbone)
            learner._restore(saved)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        except Exception as error:  # impossible sizes: torch, timm and Python each have their errors
            raise UserError(f"{folder} cannot be built here ({first_line(error)}); check its config") from error
        return learner

    def save(self, folder: Path | str) -> None:
        """Write the learner to `folder`, whole or not at all.

        Raises:
            UserError: as `store.save`, among them: the folder holds a learner that this one does not descend from.
                Or the last `learn` did not end.
        """
        self.check_whole()
        state = self.method.state_dict()
        if odd := next((name for name in state if name.startswith(store.OWN)), None):
            raise ValueError(f"the method has a member {odd}: optimizer, memory and images are names of the store")
        state |= {**self.memory.tensors(self.classes, self.config.memory.store), **self.ledger.tensors()}
        if not self.scenario.boundaries:  # whose optimisers go on from micro-task to micro-task
            for number, moments in self.moments.items():
                state |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        about = (self.config, self.backbone.describe(), self.classes, self.history, self.notes, state)
        saved = Saved(*about, changes=self.changes)
        self.ancestors.append(processes.on_first(lambda: store.save(Path(folder), saved, self.ancestors)))

    def _check(self, images: ImageSet) -> None:
        """Refuse what cannot be learned before anything changes."""
        self.check_whole()
        check_names(images.classes)

    def _restore(self, saved: Saved) -> None:
        store.check_backbone(saved, self.backbone.describe(), self.config.backbone.weights)
        for number, record in enumerate(saved.tasks):
            new = self.new(record.images)
            count = sum(record.images.values())
            past = PastTask(self.config.seed, number, len(new), count, self.scenario.boundaries)
            self.method.grow(cast(TaskView, past))
            self.method.to(self.device).eval()
            self.classes += new
            self.history.append(record)
        store.fill(self.method, saved)
        self.ledger = Ledger.restored(saved.state, self.classes, self.history)
        self.memory.restore(saved.state, self.classes, self.config.data.cache_mb)
        for name, value in saved.state.items():
            if name.startswith("optimizer."):
                _, stage, own = name.split(".", 2)
                self.moments.setdefault(int(stage), {})[own] = value
        self.notes, self.changes, self.ancestors = saved.notes, saved.changes, [saved.checksum]
        if saved.format == 1 and type(self.method).familiarity is not Method.familiarity:
            self.notes.pop("calibration", None)  # it was a probability then

    def _query(self, images_BCHW: Tensor) -> Tensor:
        return self.method.query(self.backbone, images_BCHW)

    @property
    def calibration(self) -> Calibration:
        """Temperature and threshold, from the images held out so far. Raises UserError for damaged notes."""
        return Calibration.of(self.notes)

    def learn(
        self,
        images: ImagesLike,
        labels: LabelsLike | None = None,
        *,
        name: str | None = None,
        checkpoint: Path | str | None = None,
        progress: Progress | None = None,
        again: bool = True,
    ) -> LearnRecord:
        """Learn the classes of `images`: new names are added, known names get more training.

        The result depends only on (seed, number of tasks learned before), the images and the state.
        Args: images, labels: a folder with one folder a class, or images and a class for each; name is what the
        history calls the task; checkpoint is the folder that this learner was loaded from or saved to: training writes
        checkpoints there, and continues one that was interrupted with the same images; progress is told of each step;
        without `again`, images that were learned before are left out, and no image is learned twice.

        Raises:
            UserError: the loss is not finite, an image does not decode, another `learn` was interrupted before.
        """
        found = labelled(images, labels, self.config.data.cache_mb)
        said = [] if found is images else list(found.notes)
        if again:
            record = self._take_in(found, name, checkpoint, progress)
            return replace(record, warnings=[*said, *record.warnings])
        self._check(found)
        sifted = self.sift(distinct(found)[0])
        record = LearnRecord(0, 0.0, {}, [], {})
        if len(sifted.images):
            record = self._take_in(sifted.images, name, checkpoint, progress)
        return replace(record, warnings=[*said, *sifted.sentences(), *record.warnings], before=sifted.before)

    def _take_in(
        self,
        images: ImageSet,
        name: str | None,
        checkpoint: Path | str | None = None,
        progress: Progress | None = None,
    ) -> LearnRecord:
        start = time.perf_counter()
        self._check(images)
        said = self._decoded(images)
        sha256 = images.sha256()
        kept_at = None
        if checkpoint is not None:
            kept_at = store.open_checkpoint(Path(checkpoint), self.ancestors, sha256, len(self.history), self.config)
        self._whole = False
        task = self.begin(images)
        task.warnings += said
        trainer = self.trainer(task, kept_at, progress)
        with processes.in_first(lambda: store.lock(kept_at.store) if kept_at else contextlib.nullcontext()):
            self.tell(task, trainer)
        statistics = self.method.stats.take()
        if not task.offered:
            task.offer()
        held_out = self._calibrate(task)
        # Only after calibration: images that may be replayed are no fair test.
        self.memory.add(task.held_out, task_generator(self.config.seed, task.number, "held-out memory"), task.number)
        self.memory.keep(lambda images: task.with_given(images, self._keep(images)))
        seconds = time.perf_counter() - start + (kept_at.seconds_before if kept_at is not None else 0.0)
        self.ledger.add([task.new, task.held_out], [self.labels(task.new), self.labels(task.held_out)])
        self.history.append(TaskRecord.of(name or f"task {task.number + 1}", images, seconds, sha256))
        self._whole = True
        hand_back()  # the sums of each task are a little larger than those of the last, and do not fit in their place
        if self.config.memory.size and task.number == 1 and not task.memory_was_read:
            idle = "memory.per_class" if self.config.memory.per_class else "memory.total"
            task.warn(f"method.name={self.config.method['name']} does not replay images, so {idle} is idle")
        seen = trainer.seen or len(task.new)
        return LearnRecord(seen, seconds, statistics, task.warnings, held_out)

    def _keep(self, images: ImageSet) -> dict[str, Tensor]:
        """What the method has the memory keep beside `images`, by name, one row for each image."""
        rows: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for batch in self.batches.evaluation(images, self.labels(images), self.method.together, everything=True):
                for name, values in self.method.keep(self.backbone, batch).items():
                    rows.setdefault(name, []).append(values)
        self.method.stats.clear()
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def _calibrate(self, task: PresentTask) -> dict[str, tuple[int, int]]:
        """Calibrate on images that were not learned; right answers and images by class.

        Those held out are measured on first, then the method absorbs them; a method that can leave out one image at a
        time is measured on all.
        """
        held, right = task.held_out, {}
        if len(held):
            labels_N = self.labels(held)
            logits_NK, familiarity_N = self.answers(held, labels_N)
            self.notes["calibration"] = self.calibration.joined(
                measure(logits_NK, labels_N, familiarity_N)
            ).model_dump()
            with torch.no_grad():
                self.method.absorb(self.backbone, task, held)
            right = by_class(held, logits_NK.argmax(1) == labels_N)
        return self._recalibrate() or right

    def answers(self, images: ImageSet, labels_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [N, K] of a whole set, in its order, and how familiar each image is [N] where the method says so."""
        with torch.no_grad(), joined(self.method, self.device, sums=False):
            parts = []
            for batch in self.batches.evaluation(images, labels_N, self.method.together):
                logits_BK = self.method.logits(self.backbone, batch).float()
                known_B = self.method.familiarity(self.backbone, batch, logits_BK)
                parts.append(logits_BK if known_B is None else torch.cat([logits_BK, known_B.float()[:, None]], 1))
        mine, classes = self.batches.mine(images, self.method.together), len(self.classes)
        width = max(processes.everyones(parts[0].shape[1] if parts else 0))
        table = processes.gather(parts or [torch.empty(0, width)], mine, (len(images), width), self.device)
        return table[:, :classes], table[:, classes] if width > classes else None

    def logits(self, images: ImageSet, labels_N: Tensor) -> Tensor:
        """Logits [N, K] of a whole set, in its order."""
        return self.answers(images, labels_N)[0]

    def evaluate(self, images: ImagesLike, labels: LabelsLike | None = None, unseen: bool = False) -> Evaluation:
        """Accuracy on `images`, every learned class competing; with `unseen`, classes never learned count as wrong.

        Raises:
            UserError: a class of `images` that was never learned, without `unseen`.
        """
        images = labelled(images, labels, self.config.data.cache_mb)
        check_images(self.as_learned(images), data=self.config.data)
        start, labels_N = time.perf_counter(), self.labels(images, unseen)
        self.method.stats.clear()
        right_N = self.logits(images, labels_N).argmax(1) == labels_N
        accuracy, seconds = 100.0 * right_N.sum().item() / len(images), time.perf_counter() - start
        warnings = one_class(self.classes, images.classes)
        return Evaluation(accuracy, len(images), seconds, self.method.stats.take(), by_class(images, right_N), warnings)

    def predict(self, images: ImagesLike, top: int = 1, threshold: float | None = None) -> list[Prediction]:
        """Predict the class of each image, and the `top` most probable ones; images as `data.unlabelled` takes them.

        threshold: answers less probable are UNKNOWN, 0 always names a class; None calls those UNKNOWN that are less
        familiar than nearly all right answers (`calibration`).
        Raises UserError: nothing was learned yet; an image that cannot be read.
        """
        if not self.classes:
            raise UserError("this learner knows no class yet; learn a folder of images first")
        images, calibration = self.as_learned(unlabelled(images, self.config.data.cache_mb)), self.calibration
        labels_N = torch.zeros(len(images), dtype=torch.long, device=self.device)
        logits_NK, familiarity_N = self.answers(images, labels_N)
        self.method.stats.clear()
        logits_NK = logits_NK / calibration.temperature
        probable_N = logits_NK.softmax(1).max(1).values
        familiarity_N = probable_N if familiarity_N is None else familiarity_N
        measure_N, least = (familiarity_N, calibration.threshold) if threshold is None else (probable_N, threshold)
        known_N = measure_N >= (-torch.inf if least is None else least)
        return predictions(logits_NK, familiarity_N, self.classes, top, known_N)

    def trained_parameters(self) -> int:
        """Number of parameters that training changes (prompts, keys, head), with the classes so far."""
        return sum(p.numel() for group in self.method.parameter_groups(1.0) for p in group["params"])
