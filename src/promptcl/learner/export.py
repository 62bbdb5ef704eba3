"""Export a learner as a program that runs without promptcl: images in, probabilities and familiarity out.

B images, K classes, S pixels a side.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.backbone.weights import first_line
from promptcl.errors import UserError
from promptcl.layers import ClassGaussians, Rows, SymmetricSum
from promptcl.layers.lora import TokenMoments
from promptcl.layers.springs import PerNumber, Springs
from promptcl.learner.learner import Learner
from promptcl.methods._base import Method
from promptcl.runtime import disk

SUFFIXES = (".pt2", ".onnx")


class _Batch:
    """The batch inside a program: the query is part of the program only if the method reads it."""

    allowed_BK = None
    kept: Mapping[str, Tensor] = {}
    epoch, old_share = 0, 0.0

    def __init__(self, method: Method, backbone: Backbone, images_BCHW: Tensor) -> None:
        self.method, self.backbone, self.images_BCHW = method, backbone, images_BCHW

    @cached_property
    def query_BD(self) -> Tensor:
        return self.method.query(self.backbone, self.images_BCHW)

    @property
    def labels_B(self) -> Tensor:
        return torch.zeros_like(self.images_BCHW[:, 0, 0, 0], dtype=torch.long)

    @property
    def old_B(self) -> Tensor:
        return self.labels_B.bool()

    @property
    def place_B(self) -> Tensor:
        return torch.arange(len(self.images_BCHW))

    @property
    def generator(self) -> torch.Generator:
        raise UserError("this method draws random numbers to answer, which an exported program cannot do")

    def once(self, name: str, compute: Callable[[], Tensor], *of: Tensor) -> Tensor:
        return compute()

    def another_view(self) -> Tensor:
        raise UserError("this method augments images to answer, which an exported program cannot do")


class Program(nn.Module):
    """Backbone and method in one: float images (B, 3, S, S) in [0, 1] -> probabilities (B, K), familiarity (B)."""

    def __init__(self, learner: Learner) -> None:
        """Copy backbone, method and temperature of `learner` to the CPU."""
        super().__init__()
        self.backbone = copy.deepcopy(learner.backbone).cpu()
        self.method = copy.deepcopy(learner.method).cpu().eval().requires_grad_(False)
        for part in list(self.method.modules()):  # what only learning reads, among it what is known of single images
            for name, child in part.named_children():
                if isinstance(child, ClassGaussians | Rows | SymmetricSum | TokenMoments | Springs | PerNumber):
                    setattr(part, name, nn.Identity())
        self.temperature = learner.calibration.temperature

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and familiarity as Learner.predict gives them for the same view of an image."""
        batch = _Batch(self.method, self.backbone, self.backbone.normalise(images_BCHW))
        logits_BK = self.method.logits(self.backbone, batch).float()
        probabilities_BK = (logits_BK / self.temperature).softmax(1)
        familiarity_B = self.method.familiarity(self.backbone, batch, logits_BK)
        return probabilities_BK, probabilities_BK.max(1).values if familiarity_B is None else familiarity_B.float()


def export(learner: Learner, file: Path) -> Path:
    """Write `file` (.pt2, a torch.export program, or .onnx) and beside it a .json that says what goes in and comes out.

    Returns the path of the JSON file.
    Raises UserError: another ending, nothing learned, ONNX not installed, a method whose answers depend on neighbours.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: expected a file that ends in {' or '.join(SUFFIXES)}; write e.g. {file.stem}.pt2")
    if file.suffix == ".onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise UserError(
            f"{file}: onnx and onnxscript are not both installed; pip install 'promptcl[onnx]', or write .pt2"
        )
    exported = trace(learner)
    about = file.with_name(f"{file.name}.json")
    # In memory first: torch and onnx write in C++, which ends the process where the disk is full.
    content = _onnx(exported) if file.suffix == ".onnx" else _pt2(exported)
    file.parent.mkdir(parents=True, exist_ok=True)
    disk.write_all({file: content, about: (json.dumps(description(learner), indent=1) + "\n").encode()})
    return about


def trace(learner: Learner) -> torch.export.ExportedProgram:
    """What `export` writes: `Program` as torch.export traced it, for any number of images.

    Raises UserError: nothing learned, a method whose answers depend on neighbours or cannot be traced.
    """
    learner.check_whole()
    if not learner.classes:
        raise UserError("this learner knows no class yet; learn a folder of images first")
    if learner.method.together > 1:
        raise UserError(
            "with these options an answer depends on its neighbours, which a program cannot do; for l2p and dualprompt "
            "write method.vote=image"
        )
    program, size = Program(learner).eval(), learner.backbone.image_size
    example, shapes = (torch.zeros(2, 3, size, size),), {"images_BCHW": {0: torch.export.Dim("images", min=1)}}
    with torch.no_grad():
        return _exported(program, example, shapes, str(learner.config.method["name"]))


def _exported(program: Program, example: tuple[Tensor], shapes: Any, method: str) -> torch.export.ExportedProgram:
    seen: list[Any] = []
    hook = program.backbone.vit.patch_embed.register_forward_hook(lambda *_: seen.append(None))
    try:
        program(*example)
        hook.remove()
        if not seen:  # the method has a ViT of its own; the program would carry this one for nothing
            program.backbone.vit = nn.Identity()
        return torch.export.export(program, example, dynamic_shapes=shapes)
    except UserError:
        raise
    except Exception as error:  # torch.export has many errors of its own for what it cannot trace
        raise UserError(
            f"method.name={method} cannot be exported ({first_line(error)}): its answers are no fixed program of the "
            "pixels; use Learner.predict, or another method"
        ) from error


def _pt2(exported: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.export.save(exported, buffer)
    except Exception as error:  # of torch's own kinds
        raise UserError(f"the program cannot be written as .pt2 ({first_line(error)}); write .onnx") from error
    return buffer.getvalue()


def _onnx(exported: torch.export.ExportedProgram) -> bytes:
    from onnxscript import opset18 as op

    def sort(x: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
        """Sort stably, as selecting prompts needs and torch.onnx cannot: TopK of all, ties to the lower id."""
        count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))  # type: ignore[type-var]
        return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of every Split node that it leaves as it is
    made = torch.onnx.export(
        exported,
        (),
        input_names=["images"],
        output_names=["probabilities", "familiarity"],
        external_data=False,
        verbose=False,
        custom_translation_table={torch.ops.aten.sort.stable: sort},
    )
    assert made is not None
    content: bytes = made.model_proto.SerializeToString()
    return content


def description(learner: Learner) -> dict[str, object]:
    """Describe the inputs and outputs of the exported program, as JSON values."""
    size, crop = learner.backbone.image_size, learner.config.data.eval_crop
    return {
        "classes": learner.classes,
        "input": f"float32 (B, 3, {size}, {size}), RGB in [0, 1]; B is free",
        "view": f"resize to {round(size / crop)} x {round(size / crop)} (bilinear, antialiased, aspect not kept), "
        f"then the central {size} x {size}",
        "outputs": {
            "probabilities": f"float32 (B, {len(learner.classes)}), in the order of `classes`",
            "familiarity": "float32 (B), how much an image looks like one of the classes; in units of the method, "
            "no probability where the method has units of its own",
        },
        "image_size": size,
        "eval_crop": crop,
        "threshold": learner.calibration.threshold,
        "unknown": "the answer to an image whose familiarity is below `threshold`; threshold null: to none",
        "backbone": learner.backbone.describe(),
    }
