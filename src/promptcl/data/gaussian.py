"""Make a stream without tasks: classes come and go by a Gaussian schedule (arXiv 2105.13327, as L2P uses it).

E micro-tasks, K classes, s batches a micro-task, S = E * s batches in all. Class j peaks at batch
p_j = (S // K) // 2 + j * (S // K); at micro-task e it is included with probability exp(-(e*s - p_j)^2 / (2 sigma^2)),
independently of the others. The set of classes is random; sampling is then uniform over their images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from promptcl.config import Config
from promptcl.data.splits import Split
from promptcl.data.stream import Stream, Task, micro_task
from promptcl.errors import UserError
from promptcl.runtime.seeding import task_generator

_TRIES = 1000


def peaks(classes: int, micro_tasks: int, steps: int) -> list[int]:
    """The batch at which each class is most frequent, one number a class.

    Negative `steps` follow the arithmetic of the L2P release. Raises UserError when there are fewer batches than
    classes.
    """
    gap = micro_tasks * steps // classes
    if gap == 0:
        raise UserError(
            f"gaussian.micro_tasks={micro_tasks} times gaussian.steps={steps} is fewer than the {classes} classes; "
            f"write gaussian.micro_tasks={-(-classes // steps)} or more"
        )
    return [gap // 2 + j * gap for j in range(classes)]


def inclusion(classes: int, micro_tasks: int = 200, steps: int = 5, sigma: float = 50.0) -> npt.NDArray[np.float64]:
    """Probability [E, K] that a class is included in a micro-task; `sigma` and `steps` count batches."""
    distance_EK = np.arange(micro_tasks)[:, None] * steps - np.array(peaks(classes, micro_tasks, steps))
    included_EK: npt.NDArray[np.float64] = np.exp(-(distance_EK**2) / (2 * sigma**2))
    return included_EK


def draw_classes(probability_K: npt.NDArray[np.float64], generator: torch.Generator) -> list[int]:
    """Draw the classes of one micro-task: each is in by its own probability; all are drawn again while none is in.

    A schedule so narrow that this fails a thousand times gets its most probable class.
    """
    p_K = torch.from_numpy(probability_K)
    for _ in range(_TRIES):
        draw_K = torch.rand(len(p_K), generator=generator, dtype=torch.float64)
        included: list[int] = torch.nonzero(draw_K < p_K)[:, 0].tolist()
        if included:
            return included
    return [int(p_K.argmax())]


def gaussian_stream(split: Split, order: tuple[str, ...], config: Config) -> Stream:
    """A stream of micro-tasks of s * batch_size images, drawn without replacement from all images of their classes.

    Micro-task e is a function of (seed, e). An image may come again in a later micro-task, as in the release. With
    `release_schedule` s is -1 in the arithmetic and a micro-task has all images of its classes.
    """
    options = config.gaussian
    train, test = split.train.of_classes(order), split.test
    steps = -1 if options.release_schedule else options.steps
    probability_EK = inclusion(len(order), options.micro_tasks, steps, options.sigma)
    most = None if options.release_schedule else steps * config.train.batch_size
    members = [np.flatnonzero(train.labels == k) for k in range(len(order))]
    tasks, drawn = [], []
    for e in range(options.micro_tasks):
        generator = task_generator(config.seed, e, "gaussian")
        included = draw_classes(probability_EK[e], generator)
        rows = np.concatenate([members[k] for k in included])
        if most is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)[:most].numpy()]
        tasks.append(micro_task(e, train.select(rows), order, test))
        drawn.append(included)
    schedule = {
        "micro_tasks": options.micro_tasks,
        "steps": steps,
        "sigma": options.sigma,
        "classes": list(order),
        "peaks": peaks(len(order), options.micro_tasks, steps),
        "expected_classes": [round(float(total), 4) for total in probability_EK.sum(1)],
        "included": drawn,
    }
    everything = Task("all images", order, train, test)
    return Stream(
        tasks,
        [everything],
        everything,
        one_test=True,
        evaluate_every=options.evaluate_every,
        schedule=schedule,
        online=config.measures_online,
    )
