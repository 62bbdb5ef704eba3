"""Make a stream whose tasks run into one another: Si-Blurry (Moon et al., ICCV 2023, arXiv 2308.09303).

A share `disjoint` of the classes has all its images in one task each. The others are blurry: each has a task of its own
too, but a share `blur` of their images is taken out of their tasks, shuffled, and dealt out again, to each task as many
as it gave; some come back to where they were. Which classes, images and numbers is drawn; with `stochastic` off the
numbers are as equal as can be (i-Blurry, Koh et al., ICLR 2022, arXiv 2110.10031). Every image comes exactly once.

The paper calls the two shares m and n, its public code n and m (as i-Blurry-N-M). Differs from that code in: what is
taken out is drawn, not the first images of a task; no class is left out where numbers do not divide; all that is to be
taken out is, where a task has less than was drawn for it; no batch ends where a task does. Copies of the code differ:
some keep the blurry classes of tasks equal, and shuffle their images only after the stream has been made of them.

K classes, N images, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from promptcl.config import Config
from promptcl.data.splits import Split
from promptcl.data.stream import Stream, Task, micro_task
from promptcl.runtime.seeding import task_generator

Whole = npt.NDArray[np.int64]


def cut(total: int, parts: int, generator: torch.Generator | None) -> list[int]:
    """Sizes of `parts` parts of `total`: cut at places drawn uniformly, so that a part may be empty.

    Without a generator they are as equal as can be, the first ones larger.
    """
    if generator is None:
        return [len(part) for part in np.array_split(np.arange(total), parts)]
    places = sorted(torch.randint(total + 1, (parts - 1,), generator=generator).tolist())
    return [end - start for start, end in pairwise([0, *places, total])]


def within(wanted: Sequence[int], room: Sequence[int]) -> list[int]:
    """`wanted`, but no number above its `room`; what is left over goes where there still is room, from the first on."""
    left, found = sum(wanted) - sum(map(min, wanted, room)), []
    for number, most in zip(wanted, room, strict=True):
        more = min(left, max(0, most - number))
        found.append(min(number, most) + more)
        left -= more
    return found


def tasks_of_classes(
    classes: int, tasks: int, disjoint: float, stochastic: bool, generator: torch.Generator
) -> tuple[Whole, npt.NDArray[np.bool_]]:
    """Draw the task [K] of each class, and which classes [K] are blurry."""
    order_K, number = torch.randperm(classes, generator=generator).numpy(), round(disjoint * classes)
    drawn = generator if stochastic else None
    sizes = [*cut(number, tasks, drawn), *cut(classes - number, tasks, drawn)]
    task_K, blurry_K = np.empty(classes, dtype=np.int64), np.zeros(classes, dtype=np.bool_)
    task_K[order_K] = np.repeat(np.tile(np.arange(tasks), 2), sizes)
    blurry_K[order_K[number:]] = True
    return task_K, blurry_K


def tasks_of_images(labels_N: Whole, classes: int, config: Config) -> tuple[Whole, Whole, npt.NDArray[np.bool_]]:
    """The task [N] of each image, and of each class [K] the task that it belongs to and whether it is blurry.

    A function of the labels, the settings and the seed.
    """
    options, tasks = config.blurry, _number(config)
    generator = task_generator(config.seed, 0, "blurry")
    task_K, blurry_K = tasks_of_classes(classes, tasks, options.disjoint, options.stochastic, generator)
    task_N, blurry_N = task_K[labels_N], blurry_K[labels_N]
    room_T = np.bincount(task_N[blurry_N], minlength=tasks).tolist()
    if options.stochastic:
        given_T = within(cut(round(options.blur * sum(room_T)), tasks, generator), room_T)
    else:
        given_T = [round(options.blur * room) for room in room_T]
    taken = []
    for t, given in enumerate(given_T):
        rows = np.flatnonzero(blurry_N & (task_N == t))
        taken.append(rows[torch.randperm(len(rows), generator=generator)[:given].numpy()])
    moved = np.concatenate(taken)
    task_N[moved] = task_N[moved[torch.randperm(len(moved), generator=generator).numpy()]]
    return task_N, task_K, blurry_K


def blurry_stream(split: Split, order: tuple[str, ...], config: Config) -> Stream:
    """A stream of micro-tasks of `blurry.steps` batches, cut from all tasks in a row; each image is in one of them.

    Nothing tells where a task ends: not the size of a micro-task either.
    """
    train, test, tasks = split.train.of_classes(order), split.test, _number(config)
    task_N, task_K, blurry_K = tasks_of_images(train.labels, len(order), config)
    # The images in a random order within each task.
    shuffled_N = torch.randperm(len(train), generator=task_generator(config.seed, 0, "blurry order")).numpy()
    rows_N = shuffled_N[np.argsort(task_N[shuffled_N], kind="stable")]
    size = config.blurry.steps * config.train.batch_size
    micro_tasks = [
        micro_task(e, train.select(rows_N[start : start + size]), order, test)
        for e, start in enumerate(range(0, len(rows_N), size))
    ]
    images_TK = np.zeros((tasks, len(order)), dtype=np.int64)
    np.add.at(images_TK, (task_N, train.labels), 1)
    schedule = {
        "classes": list(order),
        "task_of_class": task_K.tolist(),
        "blurry": np.flatnonzero(blurry_K).tolist(),
        "images": images_TK.tolist(),
    }
    everything = Task("all images", order, train, test)
    return Stream(
        micro_tasks,
        [everything],
        everything,
        one_test=True,
        evaluate_every=config.blurry.evaluate_every,
        schedule=schedule,
        online=config.measures_online,
    )


def _number(config: Config) -> int:
    """The number of tasks, which a configuration with this scenario has."""
    return config.tasks if isinstance(config.tasks, int) else len(config.tasks)
