"""A classifier that grows: learn, evaluate, predict. Labels are names at every border. K classes so far, N images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptcl import store
from promptcl.backbone.vit import Backbone
from promptcl.backbone.weights import first_line
from promptcl.config.schema import Config
from promptcl.data.images import ImageSet
from promptcl.data.inputs import ImagesLike as Pictures
from promptcl.data.inputs import labelled, unlabelled
from promptcl.errors import UserError
from promptcl.learner.calibration import Calibration, hold_out, measure
from promptcl.learner.records import Evaluation, LearnRecord, Prediction, by_class, check_names, class_ids, predictions
from promptcl.methods._base import load_method
from promptcl.runtime import processes
from promptcl.runtime.device import check_dtypes, pick_device, with_precision
from promptcl.runtime.seeding import task_generator
from promptcl.store.checkpoint import Checkpoint, moments, named_moments
from promptcl.store.folder import Saved, TaskRecord
from promptcl.training.batches import Batches
from promptcl.training.loop import fit
from promptcl.training.memory import Memory, Replay
from promptcl.training.optim import make_optimizer


class Learner:
    """A frozen backbone, a method, and the class names in the order they were learned."""

    def __init__(self, config: Config, backbone: Backbone | None = None) -> None:
        """Create an empty learner; `backbone` is frozen and may be shared by several, None loads that of the config.

        Raises UserError: weights, backbone or device that cannot be used.
        """
        self.device = pick_device(config.device)
        model = load_method(config.method["name"])
        options = model.Options(**{k: v for k, v in config.method.items() if k != "name"})
        complete = {"name": config.method["name"], **options.model_dump(mode="json")}
        self.config = config = with_precision(config, self.device).model_copy(update={"method": complete})
        self.backbone = (backbone or Backbone.create(config.backbone)).to(self.device)
        self.method = model(options, self.backbone.width, task_generator(config.seed, 0, "initial values"))
        check_dtypes(self.method, self.device)
        self.method.to(self.device)
        self.classes: list[str] = []
        self.history: list[TaskRecord] = []
        self.notes: dict[str, Any] = {}
        """JSON values that are saved with the learner."""
        self.ancestors: list[str] = []
        """Checksums of the stores that this learner was loaded from and saved to, the last one last."""
        self._whole = True
        self.boundaries = config.scenario != "gaussian"
        if not self.boundaries and self.method.needs_tasks:
            raise UserError(
                f"method.name={config.method['name']} with these options needs to know where tasks end, which "
                "scenario=gaussian never says; choose another method or, for l2p, method.diversify=none"
            )
        self.memory = Memory(config.memory.per_class)
        self._optimizer: torch.optim.Optimizer | None = None
        self.batches = Batches(self.backbone, config, self.device)

    @classmethod
    def create(cls, config: Config, backbone: Backbone | None = None) -> Learner:
        """An empty learner: the constructor by another name, beside `load`."""
        return cls(config, backbone)

    @classmethod
    def load(
        cls, folder: Path | str, overrides: Sequence[str] = (), backbone: Backbone | None = None, trust: bool = False
    ) -> Learner:
        """The learner in `folder`, as it was saved. Arguments as of `store.load`; backbone as of the constructor.

        Raises:
            UserError: as `store.load`; weights that are missing or are not those it was learned with.
        """
        saved = store.load(Path(folder), overrides, trust)
        try:
            learner = cls(saved.config, backbone)
            learner._restore(saved)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        except Exception as error:  # numbers that no machine can use: torch, timm and Python each have their errors
            raise UserError(f"{folder} cannot be built here ({first_line(error)}); check its config") from error
        return learner

    def save(self, folder: Path | str) -> None:
        """Write the learner to `folder`, whole or not at all.

        Raises:
            UserError: as `store.save`, among them: the folder holds a learner that this one does not descend from.
                Or the last `learn` did not end.
        """
        self._check_whole()
        state = {**self.method.state_dict(), **(self.memory.tensors(self.classes) if self.config.memory.store else {})}
        if not self.boundaries and self._optimizer is not None:  # which goes on from micro-task to micro-task
            state = {**state, **named_moments(self._optimizer)}
        saved = Saved(self.config, self.backbone.describe(), self.classes, self.history, self.notes, state)
        self.ancestors.append(processes.on_first(lambda: store.save(Path(folder), saved, self.ancestors)))

    def _check(self, images: ImageSet) -> None:
        """Refuse what cannot be learned before anything changes."""
        self._check_whole()
        check_names(images.classes)
        if self.config.memory.per_class and self.history and self.memory.images is None and self.method.trained:
            raise UserError(
                f"memory.per_class={self.config.memory.per_class} replays earlier images, which are not in the store: "
                "give them to Learner.remember, write memory.per_class=0, or begin with memory.store=true"
            )

    def _check_whole(self) -> None:
        if not self._whole:
            raise UserError("this learner was interrupted while it learned: expected a whole one, load it again")

    def _restore(self, saved: Saved) -> None:
        store.check_backbone(saved, self.backbone.describe(), self.config.backbone.weights)
        for record in saved.tasks:
            self.make_room(record.images, len(self.history))
            self.history.append(record)
        store.fill(self.method, saved)
        self.memory.restore(saved.state, self.classes, self.config.data.cache_mb)
        if not self.boundaries and self.history:
            self._optimizer = make_optimizer(self.method, self.config.train)
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": moments(saved.state), "param_groups": groups})
        self.method.eval()
        self.notes, self.ancestors = saved.notes, [saved.checksum]

    def make_room(self, names: Iterable[str], task: int = 0) -> None:
        """Make room for those `names` that are new, as task number `task` does."""
        known = set(self.classes)
        new = [name for name in names if name not in known]
        self.classes += new
        self.method.grow(len(new), task_generator(self.config.seed, task, "new classes"))

    def _labels(self, images: ImageSet, unseen: bool = False) -> Tensor:
        return class_ids(images, self.classes, unseen).to(self.device)

    @property
    def calibration(self) -> Calibration:
        """Temperature and threshold, from the pictures held out so far. Raises UserError for damaged notes."""
        return Calibration.of(self.notes)

    def steps(self, images: int) -> int:
        """Optimiser steps that learning so many images takes now (some less with train.holdout)."""
        return self.batches.steps(images) if self.method.trained else 0

    def learn(
        self,
        images: Pictures,
        step: Callable[[], None] = lambda: None,
        name: str | None = None,
        checkpoint: Path | str | None = None,
        labels: Sequence[str] | None = None,
    ) -> LearnRecord:
        """Learn the classes of `images`: new names are added, known names get more training.

        What happens depends on (seed, number of tasks learned before), the images and the state, on nothing else.
        Args: images, labels as of `pictures.labelled`: a folder with one folder a class, or pictures and a name for
        each; name is what the history calls it; checkpoint is the folder that this learner was loaded from or saved to:
        training leaves checkpoints there, and where it was interrupted with the same images, it goes on.

        Raises:
            UserError: the loss is not finite, an image does not decode, another `learn` was interrupted before.
        """
        images = labelled(images, labels, self.config.data.cache_mb)
        start, method, task = time.perf_counter(), self.method, len(self.history)
        self._check(images)
        sha256 = images.sha256()
        keeper = (
            None if checkpoint is None else store.open_checkpoint(Path(checkpoint), self.ancestors, sha256, self.config)
        )
        self._whole = False
        self.make_room(images.classes, task)
        kept, held = self._parts(images, task)
        warning, seen, _ = None, len(kept), self._pop()
        if method.trained:
            warning = method.start(task) if self.boundaries else None
            # New rows are masked, so replayed rows alone compare new classes with old ones: they must hold both.
            early = self._masked and self.memory.images is not None
            if early:
                self.memory.add(kept, task_generator(self.config.seed, task, "memory"))
            replay = self._replay()
            self._train(kept, self._labels(kept), step, replay, keeper)
            if not early:
                self.memory.add(kept, task_generator(self.config.seed, task, "memory"))
            seen *= self.batches.epochs(len(kept))
            seen += replay.rows * self.batches.steps(len(kept)) if replay is not None else 0
        match, selections = self._pop()
        method.eval()
        self._finish(kept)
        held_out = self._calibrate(held) if len(held) else {}
        # Not before: what is replayed cannot be measured on.
        self.memory.add(held, task_generator(self.config.seed, task, "held-out memory"))
        seconds = time.perf_counter() - start + (keeper.seconds_before if keeper is not None else 0.0)
        self.history.append(TaskRecord.of(name or f"task {task + 1}", images, seconds, sha256))
        self._whole = True
        return LearnRecord(seen, seconds, selections, match, warning, held_out)

    def _train(
        self,
        images: ImageSet,
        labels_N: Tensor,
        step: Callable[[], None],
        replay: Replay | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        config, method = self.config, self.method
        present_K = None
        if self._masked:
            present_K = torch.zeros(len(self.classes), dtype=torch.bool, device=self.device)
            present_K[labels_N] = True
        method.train()
        generator = task_generator(config.seed, len(self.history), "training")
        previous = None if self.boundaries else self._optimizer
        args = (method, self.batches, images, labels_N, present_K, config, generator, step, replay, previous)
        with processes.in_first(lambda: store.lock(checkpoint.store) if checkpoint else contextlib.nullcontext()):
            self._optimizer = fit(*args, checkpoint)

    @property
    def _masked(self) -> bool:
        # Every domain has all classes, so there is nothing to mask.
        return self.config.train.mask and self.method.use_mask and self.config.scenario != "domain"

    def _parts(self, images: ImageSet, task: int) -> tuple[ImageSet, ImageSet]:
        """What task `task` trains on, and what it holds out."""
        return hold_out(images, self.config.train.holdout, task_generator(self.config.seed, task, "held out"))

    def remember(self, images: ImageSet, task: int) -> None:
        """Offer the images of task `task` to the memory as learning them did; it is a function of seed and images."""
        kept, held = self._parts(images, task)
        self.memory.add(kept, task_generator(self.config.seed, task, "memory"))
        self.memory.add(held, task_generator(self.config.seed, task, "held-out memory"))

    def _replay(self) -> Replay | None:
        images, rows = self.memory.images, self.config.memory.batch_size or self.config.train.batch_size
        return None if images is None else Replay(images, self._labels(images), rows)

    def _pop(self) -> tuple[float | None, list[int] | None]:
        return self.method.pop_match(), self.method.pop_selections()

    def _finish(self, images: ImageSet) -> None:
        rows = self.batches.mine(images, self.method) if self.method.sums else slice(None)
        with torch.inference_mode():
            self.method.finish(self.backbone, self.batches.evaluation(images, self._labels(images), self.method, rows))

    def _calibrate(self, held: ImageSet) -> dict[str, tuple[int, int]]:
        """Measure what is known without `held`, then finish with it; right answers and pictures of each class."""
        labels_N = self._labels(held)
        logits_NK = self.logits(held, labels_N)
        self.notes["calibration"] = self.calibration.joined(measure(logits_NK, labels_N)).model_dump()
        self._finish(held)
        return by_class(held, logits_NK.argmax(1) == labels_N)

    def logits(self, images: ImageSet, labels_N: Tensor) -> Tensor:
        """Logits [N, K] of a whole set, in its order."""
        method, mine = self.method, self.batches.mine(images, self.method)
        with processes.tally(method.tallies), torch.inference_mode():
            batches = self.batches.evaluation(images, labels_N, method, mine)
            parts = [method.logits(self.backbone, batch).float() for batch in batches]
        return processes.gather(parts, mine, (len(images), len(self.classes)), self.device)

    def evaluate(self, images: Pictures, labels: Sequence[str] | None = None, unseen: bool = False) -> Evaluation:
        """Accuracy on `images`, every learned class competing; with `unseen`, classes never learned count as wrong.

        Raises:
            UserError: a class of `images` that was never learned, without `unseen`.
        """
        images = labelled(images, labels, self.config.data.cache_mb)
        start, labels_N = time.perf_counter(), self._labels(images, unseen)
        self._pop()
        right_N = self.logits(images, labels_N).argmax(1) == labels_N
        accuracy, seconds = 100.0 * right_N.sum().item() / len(images), time.perf_counter() - start
        match, selections = self._pop()
        return Evaluation(accuracy, len(images), seconds, selections, match, by_class(images, right_N))

    def predict(self, images: Pictures, top: int = 1, threshold: float | None = None) -> list[Prediction]:
        """For each picture its class, with the `top` most probable ones; `pictures.unlabelled` says what is a picture.

        threshold: answers less probable are UNKNOWN; None takes the one of `calibration`, 0 always names a class.
        Raises UserError: nothing was learned yet; a picture that cannot be read.
        """
        if not self.classes:
            raise UserError("this learner knows no class yet; learn a folder of pictures first")
        images, calibration = unlabelled(images, self.config.data.cache_mb), self.calibration
        threshold = calibration.threshold if threshold is None else threshold
        logits_NK = self.logits(images, torch.zeros(len(images), dtype=torch.long, device=self.device))
        return predictions(logits_NK / calibration.temperature, self.classes, top, threshold)

    def trained_parameters(self) -> int:
        """Number of parameters that gradients move (prompts, keys, head), with the classes so far."""
        return sum(p.numel() for group in self.method.parameter_groups(1.0) for p in group["params"])
