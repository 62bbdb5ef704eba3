"""Random numbers are a function of seed, task and purpose."""

from __future__ import annotations

import torch

from promptcl.runtime.seeding import task_generator


def test_task_randomness_is_a_function_of_its_arguments() -> None:
    first = torch.rand(3, generator=task_generator(1, 2, "training"))
    assert torch.equal(first, torch.rand(3, generator=task_generator(1, 2, "training")))
    for other in [(2, 2, "training"), (1, 3, "training"), (1, 2, "new classes")]:
        assert not torch.equal(first, torch.rand(3, generator=task_generator(*other)))
