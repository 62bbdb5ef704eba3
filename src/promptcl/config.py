"""Configuration: the pydantic models of every setting, and their YAML form. Imports no torch.

`promptcl.recipes` fills them from a recipe and key=value.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would read `train.epochs=true` as 1.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & set(get_args(annotation) or (annotation,)):
            raise PydanticCustomError("bool_for_number", "a number was expected")
        return value


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
    input_range: Literal["weights", "unit", "symmetric"] = "weights"
    """`weights`: mean and std of the pre-training; `unit`: [0,1] as in the official runs; `symmetric`: [-1,1]."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the frozen ViT; `bf16` is autocast. Keys, prompts and heads are always fp32."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model (depth, embed_dim, ...)."""


class DataConfig(Section):
    """Images, classes and how they are seen."""

    name: str = "cifar100"
    root: str | None = None
    """Folder, archive or file; None takes the data set's default place (~/.cache/promptcl)."""
    train_per_class: int | None = Field(default=None, gt=0)
    test_per_class: int | None = Field(default=None, gt=0)
    validation_per_class: int | None = Field(default=None, gt=0)
    """Tune with this: the next n TRAINING images of each class are the test set; the test split is never read."""
    class_order: Literal["official", "shuffled"] = "official"
    augment: Literal["crop", "flip", "none"] = "crop"
    """`crop`: random resized crop and flip; `flip`: flip only; `none`: the evaluation view."""
    crop_scale: tuple[float, float] = (0.05, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = True
    eval_crop: float = Field(default=0.875, gt=0, le=1)
    """Side of the central square kept in evaluation, as a share of the resized image (224/256 in the official runs)."""
    cache_mb: int = Field(default=2048, ge=0)
    """Memory for decoded images; beyond it images are decoded again each time."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, pair: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        low, high = pair
        top = 1.0 if info.field_name == "crop_scale" else float("inf")
        if not 0 < low <= high <= top:
            raise ValueError(f"expected 0 < low <= high{' <= 1' if top == 1 else ''}")
        return pair


class TrainConfig(Section):
    """Optimisation of one task."""

    epochs: int = Field(default=5, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=0.03, gt=0)
    lr_batch: int | None = Field(default=None, gt=0)
    """Batch size that `lr` is meant for: the effective rate is lr * batch_size / lr_batch. None: `lr` as it is."""
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    mask: bool = True
    """Training mask: classes outside the task take no part in the softmax."""
    drop_last: bool = False
    query_view: Literal["augmented", "clean"] = "augmented"
    """View that queries the keys in training; `clean` queries are computed once per image."""


class EvalConfig(Section):
    """Evaluation."""

    batch_size: int = Field(default=64, gt=0)


class Config(Section):
    """One run."""

    tasks: int = Field(default=10, gt=0)
    seed: int = Field(default=42, ge=0)
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "l2p"})
    """`name` plus the options of that method (class Options in methods/<name>.py)."""


def dump_config(config: Config) -> str:
    """YAML text of every setting; `promptcl train FILE.yaml` with it repeats the run."""
    # Not allow_unicode: PyYAML would then write a few characters that it reads back differently.
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
