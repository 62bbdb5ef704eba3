"""The pydantic models of every setting, with defaults and limits, and their YAML form. Imports no torch.

`promptcl.recipes` fills them from a recipe and key=value.
"""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from promptcl.config.section import Section as Section
from promptcl.config.section import Unread as Unread
from promptcl.config.streams import BlurryConfig, GaussianConfig

WITHOUT_BOUNDARIES = ("gaussian", "blurry")
"""Scenarios that never say where a task ends."""


class BackboneConfig(Section):
    """The frozen vision transformer."""

    name: str = "vit_base_patch16_224.augreg_in21k"
    """timm model name, with or without its pre-training tag."""
    weights: str = "hub"
    """`hub` (timm's own), `random`, `embedded` (the demo ViT in this package), or a file.

    Files: .safetensors, .pth/.bin, JAX .npz.
    """
    image_size: int | None = Field(default=None, gt=0)
    """Side of the square input in pixels; None takes the model's own."""
    input_range: Literal["weights", "unit", "symmetric", "imagenet"] = "weights"
    """`weights`: mean and std of the pre-training; `unit`: [0,1] as in the official runs; `symmetric`: [-1,1];
    `imagenet`: mean and std of ImageNet, whatever the weights were trained with (S-Prompts)."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of the frozen ViT; `bf16` is autocast, `auto` takes it where the hardware has products in bfloat16
    (NVIDIA since Ampere, AMX, AVX512-BF16, ARM's bf16). Keys, prompts and heads are always fp32."""
    activation_checkpointing: bool = False
    """Keep only the input of each block for the backward pass and compute the rest again: less memory, more time."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model (depth, embed_dim, ...)."""


class DataConfig(Section):
    """Which images and classes to learn, and how an image is cut and resized."""

    name: str = "cifar100"
    root: str | None = None
    """Folder, archive or file; None takes the data set's default place (~/.cache/promptcl)."""
    train_per_class: int | None = Field(default=None, gt=0)
    test_per_class: int | None = Field(default=None, gt=0)
    validation_per_class: int | None = Field(default=None, gt=0)
    """Tune with this: the next n TRAINING images of each class are the test set; the test split is never read."""
    class_order: Literal["official", "shuffled"] = "official"
    imbalance: float | None = Field(default=None, ge=1)
    """Learn from a long tail: of equally many training images of each class the largest class keeps all and the
    smallest 1/imbalance, the others between them by a geometric series. None: all images."""
    imbalance_order: Literal["shuffled", "ordered"] = "shuffled"
    """Which classes are large: `shuffled`, drawn by `seed`; `ordered`, from the first in the order of classes down."""
    order: tuple[str, ...] | None = None
    """Data sets or domains to use, in their order of arrival; None takes all in the order that the data set states."""
    test_set: Literal["task", "common"] = "task"
    """`task`: each domain has its own test set; `common`: one test set of all domains, evaluated after every task."""
    augment: Literal["crop", "flip", "none"] = "crop"
    """`crop`: random resized crop and flip; `flip`: flip only; `none`: the evaluation view."""
    crop_scale: tuple[float, float] = (0.05, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = True
    jitter: bool = False
    """Change the colours of training views too, and blur them, as contrastive learning does (SimCLR, Co2L)."""
    eval_crop: float = Field(default=0.875, gt=0, le=1)
    """Side of the central square kept in evaluation, as a share of the resized image (224/256 in the official runs)."""
    cache_mb: int = Field(default=2048, ge=0)
    """Memory for decoded images; beyond it images are decoded again each time, or read from the disk. Features of
    images that do not change any more are kept up to a quarter as much, and computed again beyond it."""
    disk_mb: int = Field(default=0, ge=0)
    """Room for decoded and reduced images on the disk, which later epochs and runs read instead of the files (0: none).
    Nothing but the speed depends on it."""
    disk_root: str | None = None
    """Folder of these images; None takes ~/.cache/promptcl/shrunken."""
    workers: int | None = Field(default=None, ge=0)
    """Threads that decode images ahead of the step that needs them; 0: none do; None: one for each core that this
    process may use, at most 16. Nothing but the speed depends on it."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, pair: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        low, high = pair
        top = 1.0 if info.field_name == "crop_scale" else float("inf")
        if not 0 < low <= high <= top:
            raise ValueError(f"expected 0 < low <= high{' <= 1' if top == 1 else ''}")
        return pair

    def unread(self) -> dict[str, Unread]:
        """How crops and flips are drawn, where there are none, and an imbalance."""
        why = Unread(f"augment={self.augment}", "augment=crop")
        found = {} if self.augment == "crop" else dict.fromkeys(("crop_scale", "crop_ratio"), why)
        if self.augment == "none":
            found |= dict.fromkeys(("hflip", "jitter"), why)
        if self.imbalance is None:
            found["imbalance_order"] = Unread("imbalance=null", "imbalance=100")
        return found


class TrainConfig(Section):
    """How one task is trained."""

    epochs: int = Field(default=5, gt=0)
    min_steps: int | None = Field(default=None, gt=0)
    """Small tasks get more epochs until they take this many optimiser steps, but at most eight times `epochs`."""
    batch_size: int = Field(default=128, gt=0)
    balance: bool = False
    """Draw training images so that each class comes equally often, however many images it has."""
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each class kept out of training to calibrate probabilities and the `unknown` answer (0: neither)."""
    lr: float = Field(default=0.03, gt=0)
    lr_batch: int | None = Field(default=None, gt=0)
    """Batch size that `lr` is meant for: the effective rate is lr * batch_size / lr_batch. None: `lr` as it is."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """`sgd` has momentum 0.9; `adamw` decays weights beside the gradient, not through it."""
    nesterov: bool = True
    """Whether the momentum of `sgd` is Nesterov's."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    schedule: Literal["constant", "cosine", "quarter_cosine", "restarts", "step"] = "constant"
    """How the learning rate falls within a stage: not at all; to 0 by a half cosine; by a quarter cosine, epoch by
    epoch, as in CODA-Prompt and OVOR; by half cosines that start again after 1, 2, 4, ... epochs, as in GDumb; or to a
    tenth at each of `milestones`."""
    milestones: tuple[int, ...] = ()
    """Epochs after which `schedule: step` goes to a tenth."""
    mask: bool = True
    """Training mask: classes outside the task are left out of the softmax (never used with scenario=domain)."""
    mask_classes: Literal["task", "batch"] = "task"
    """Classes that the mask leaves in: those of the task (of the micro-task in a Gaussian stream), or of the batch."""
    drop_last: bool = False
    query_view: Literal["augmented", "clean"] = "augmented"
    """Image that the prompt keys are compared with in training: the augmented one, or the plain one (`clean`), whose
    query is computed once."""
    checkpoint_steps: int = Field(default=200, gt=0)
    """Steps between two checkpoints; one is written after every epoch too."""
    checkpoint_seconds: float | None = Field(default=60.0, gt=0)
    """Seconds between two checkpoints, whichever comes first; None: by steps and epochs alone."""

    @model_validator(mode="after")
    def _steps_are_named(self) -> TrainConfig:
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule=step and milestones go together: write schedule=step milestones=[30]")
        return self

    def unread(self) -> dict[str, Unread]:
        """Which classes a mask leaves in, where there is none."""
        return {} if self.mask else {"mask_classes": Unread("mask=false", "mask=true")}


class EvalConfig(Section):
    """How test images are answered."""

    batch_size: int = Field(default=64, gt=0)


class MemoryConfig(Section):
    """Rehearsal: images of earlier tasks, replayed beside the new ones."""

    per_class: int = Field(default=0, ge=0)
    """Images kept of each class; 0: no rehearsal, unless `total` says how many are kept in all."""
    total: int = Field(default=0, ge=0)
    """Images kept in all, whatever the number of classes; `rule` says which."""
    rule: Literal["class", "task", "reservoir", "greedy"] = "class"
    """Which images `total` keeps: equally many of each `class`, or of each `task`, a uniform sample of them; a uniform
    sample of all that ever came (`reservoir`); or GDumb's `greedy` sampler, where the first images of a class stay."""
    batch_size: int | None = Field(default=None, gt=0)
    """Replayed images of a step, on top of train.batch_size; None: as many as train.batch_size."""
    store: bool = False
    """Keep these images, decoded, in the learner's folder, so that `learn` in a new process replays them."""

    def unread(self) -> dict[str, Unread]:
        """Everything about replaying, where nothing is kept."""
        return {} if self.size else {"batch_size": Unread("per_class=0", "per_class=10")}

    @property
    def size(self) -> int:
        """Images kept, of each class or in all; 0: none, no rehearsal."""
        return self.per_class or self.total


class Config(Section):
    """All settings of one run."""

    scenario: Literal["class", "domain", "gaussian", "blurry"] = "class"
    """`class`: new classes in every task; `domain`: the same classes in a new domain; `gaussian`: no tasks at all;
    `blurry`: tasks that run into one another. The last two never say where a task ends."""
    tasks: int | tuple[int, ...] = 10
    """Tasks of a class-incremental stream: how many, of as equal numbers of classes as can be, or the number of classes
    of each, `[50, 10, 10, 10, 10, 10]`. Data of several data sets or domains have one task for each of them, unless
    this is 1: everything at once. With scenario=blurry the number of tasks; not read with scenario=gaussian."""
    joint: bool = False
    """Learn all tasks at once: the bound that any method's sequence is measured against. The test sets stay those of
    the tasks."""
    online: bool = False
    """Measure the accuracy on the images of each micro-task before they are learned, in a single pass; in streams that
    never say where a task ends. A class that was never seen counts as wrong."""
    seed: int = Field(default=42, ge=0)
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    gaussian: GaussianConfig = GaussianConfig()
    blurry: BlurryConfig = BlurryConfig()
    memory: MemoryConfig = MemoryConfig()
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "l2p"})
    """`name` plus the options of that method (class Options in methods/<name>.py)."""

    @field_validator("tasks")
    @classmethod
    def _positive(cls, tasks: int | tuple[int, ...]) -> int | tuple[int, ...]:
        sizes = tasks if isinstance(tasks, tuple) else (tasks,)
        if not sizes or min(sizes) < 1:
            raise ValueError("expected a whole number greater than 0, or the number of classes of each task")
        return tasks if isinstance(tasks, int) or len(tasks) > 1 else 1

    @model_validator(mode="after")
    def _images_to_store(self) -> Config:
        if self.memory.per_class and self.memory.total:
            raise ValueError("memory.per_class and memory.total both say how many images are kept; write one of them")
        if self.memory.rule != "class" and not self.memory.total:
            raise ValueError(f"memory.rule={self.memory.rule} chooses among images in all; write memory.total=500")
        if self.memory.store and not self.memory.size:
            raise ValueError("memory.store=true keeps memory.per_class images of each class; write memory.per_class=10")
        return self

    @model_validator(mode="after")
    def _where_no_task_ends(self) -> Config:
        if self.scenario in WITHOUT_BOUNDARIES:
            if self.train.schedule != "constant":
                given = f"train.schedule={self.train.schedule}"
                raise ValueError(
                    f"{given} needs task ends; with scenario={self.scenario} write train.schedule=constant"
                )
            if self.measures_online and (self.train.epochs > 1 or self.train.min_steps):
                raise ValueError(
                    "online=true measures images before their only pass; write train.epochs=1 train.min_steps=null, "
                    "or online=false"
                )
        if self.scenario == "blurry" and not isinstance(self.tasks, int):
            raise ValueError("tasks has to be a number with scenario=blurry, which draws the classes; write tasks=5")
        return self

    @property
    def measures_online(self) -> bool:
        """Whether `online` is asked for, and there is something to measure."""
        return self.online and self.scenario in WITHOUT_BOUNDARIES and not self.joint

    def unread(self) -> dict[str, Unread]:
        """What belongs to other scenarios, and what each section leaves unread."""
        found: dict[str, Unread] = {}
        for name in WITHOUT_BOUNDARIES:
            if self.scenario != name:
                found[f"{name}."] = Unread(f"scenario={self.scenario}", f"scenario={name}")
        if self.scenario not in WITHOUT_BOUNDARIES:
            found["online"] = Unread(f"scenario={self.scenario}", "scenario=blurry")
        elif self.joint:
            found["online"] = Unread("joint=true", "joint=false")
        if self.scenario not in ("class", "blurry") and self.tasks != 1:
            found["tasks"] = Unread(f"scenario={self.scenario}", "scenario=class")
        if self.scenario == "blurry" and self.data.imbalance_order == "shuffled":
            found["data.class_order"] = Unread("scenario=blurry, which draws the order of classes")
        if self.scenario == "domain":
            found |= dict.fromkeys(("data.class_order", "train.mask", "train.mask_classes"), Unread("scenario=domain"))
        elif self.data.test_set == "common":
            found["data.test_set"] = Unread(f"scenario={self.scenario}", "scenario=domain")
        for name in type(self).model_fields:
            inner = getattr(self, name)
            if isinstance(inner, Section):
                for key, why in inner.unread().items():
                    prefixed = Unread(f"{name}.{why.because}", why.instead and f"{name}.{why.instead}")
                    found.setdefault(f"{name}.{key}", prefixed)
        return found


def dump_config(config: Config) -> str:
    """YAML text of every setting; `promptcl train FILE.yaml` with it repeats the run."""
    # Not allow_unicode: PyYAML would then write a few characters that it reads back differently.
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
