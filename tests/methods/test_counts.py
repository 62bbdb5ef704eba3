"""How many numbers a method trains at ViT-B/16 with ten classes a task, in the first task and in the second one.

On the meta device, where tensors have shapes and no numbers, so all twelve blocks of full width cost nothing.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import timm
import torch

from promptcl.backbone import Backbone
from promptcl.backbone.build import Identity
from promptcl.methods._base import Method, load_method

META = torch.device("meta")
LINEAR, COSINE = 10 * 769, 10 * 768  # rows of a head for ten classes
ADAPTERS = {size: 12 * (size * (2 * 768 + 1) + 768) for size in (16, 64)}


class Task:
    """What `grow` reads of a task."""

    new_classes = count = 10

    def __init__(self, index: int) -> None:
        self.index, self.generator = index, torch.Generator()


@pytest.fixture(scope="module")
def full_size() -> Backbone:
    with META:
        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        return Backbone(vit, Identity("vit_base_patch16_224", "", "", "", ""), (0.5,) * 3, (0.5,) * 3)


def made(backbone: Backbone, name: str, options: dict[str, Any], tasks: int) -> Method:
    with META:
        model = load_method(name)
        method = model(model.Options(**options), backbone, torch.Generator())
        for index in range(tasks):
            method.grow(cast(Any, Task(index)))
    return method


def trained(method: Method) -> int:
    parameters = [p for group in method.parameter_groups(1.0) for p in group["params"]]
    return sum(p.numel() for p in parameters if p.requires_grad)


CASES: list[tuple[str, dict[str, Any], int, int]] = [
    ("aper", {}, ADAPTERS[64] + COSINE + 1, 0),
    ("aper", {"adapt": "ssf"}, 12 * 16_896 + COSINE + 1, 0),
    ("aper", {"adapt": "prompts", "size": 5}, 2 * 46_080 + COSINE + 1, 0),  # rows of keys, and of values
    ("ranpac", {"adapt": "adapter", "size": 64}, ADAPTERS[64] + LINEAR, 0),
    ("fsa", {}, ADAPTERS[16] + LINEAR, 0),
    ("ease", {}, ADAPTERS[64] + COSINE + 1, ADAPTERS[64] + 2 * COSINE + 1),
    ("tuna", {}, ADAPTERS[16] + COSINE, ADAPTERS[16] + COSINE),
    ("slca_lora", {}, 516_096 + 121_344 + LINEAR, 516_096 + 121_344 + LINEAR),  # without class token and patch bias
    ("inflora", {}, 184_320 + LINEAR, 184_320 + LINEAR),
    ("e2lora", {}, 226_492_416 + LINEAR, 49_545_216 + LINEAR),  # then rows of A alone
    ("e2lora", {"rank": 64}, 12 * 64 * (2304 + 768 + 3072 + 768) + LINEAR, 12 * 64 * 2 * 768 + LINEAR),
    ("hide", {}, 38_400 + 2_363_136 + 2 * LINEAR, 38_400 + 2_363_136 + 4 * LINEAR),  # both heads whole
    ("anacp", {}, 0, 0),
]


@pytest.mark.parametrize(("name", "options", "first", "second"), CASES, ids=str)
def test_numbers_that_are_trained(
    name: str, options: dict[str, Any], first: int, second: int, full_size: Backbone
) -> None:
    assert ADAPTERS == {16: 304_320, 64: 1_189_632}
    assert [trained(made(full_size, name, options, tasks)) for tasks in (1, 2)] == [first, second]


def test_numbers_that_anacp_keeps(full_size: Backbone) -> None:
    """As its paper counts them, for 200 classes and 5,000 random features: 106,623,424."""
    method = cast(Any, made(full_size, "anacp", {"width": 5000}, 20))
    kept = [method.directions_HDM, method.last_DM, method.layer_HMD, method.weight_KM, method.sum_KHM.value]
    kept += [square.value for square in method.squares]
    kept += [method.gaussians.sum_KD.value, torch.empty(768, 768)]  # of which the lower triangle is kept here
    assert method.gaussians.squares.value.shape == (1, 768 * 769 // 2)
    assert sum(part.numel() for part in kept) == 106_623_424


def test_numbers_of_the_gaussians(full_size: Backbone) -> None:
    """For 1,000 classes, in bytes: 2.4 GB, 12 MB or 9 MB, with the means."""
    for kind, wanted in (("full", 2_368_520_000), ("diagonal", 12_296_000), ("shared", 8_514_368)):
        gaussians = cast(Any, made(full_size, "fsa", {"covariance": kind}, 100)).alignment.gaussians
        assert sum(value.nbytes for value in gaussians.state_dict().values()) == wanted
