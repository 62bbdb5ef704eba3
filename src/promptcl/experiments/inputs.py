"""Measure the input side alone: how many images a second are decoded, reduced and cut, with some numbers of workers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from promptcl.config import Config, DataConfig
from promptcl.data import FileSource, ImageSet
from promptcl.data.ahead import Ahead, Place, batches_ahead
from promptcl.data.augment import train_view
from promptcl.errors import UserError

WORKERS = (1, 2, 4)


def input_rates(
    images: ImageSet,
    config: Config,
    size: int,
    rounds: int,
    device: torch.device,
    workers: Sequence[int] = WORKERS,
) -> dict[str, Any]:
    """Images a second of the training view of `images`, float32 (B, 3, size, size), by the number of workers.

    Nothing is read from a cache of decoded images; the files are in the system's own cache after the first round, which
    does not count. Each number of workers is measured in turn. `cpu_seconds`: of the processor, for one image.
    """
    twins = {id(source): source.uncached() for source in images.sources if isinstance(source, FileSource)}
    places: list[Place] = []
    data, batch = config.data, config.train.batch_size
    for source, row in map(images.place, range(len(images))):
        places.append((twins.get(id(source), source), row))
    seconds: dict[int, list[tuple[float, float]]] = {number: [] for number in workers}
    once(places[:batch], data, size, batch, 0, device)  # what is imported at the first image
    for _ in range(rounds):
        for number in workers:
            before = time.perf_counter(), time.process_time()
            once(places, data, size, batch, number, device)
            seconds[number].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return {
        "images": len(images),
        "workers": {
            str(number): {
                "images_per_second": len(images) / statistics.median(wall for wall, _ in times),
                "lowest": len(images) / max(wall for wall, _ in times),
                "highest": len(images) / min(wall for wall, _ in times),
                "cpu_seconds": statistics.median(cpu for _, cpu in times) / len(images),
            }
            for number, times in seconds.items()
        },
    }


def once(
    places: Sequence[Place], data: DataConfig, size: int, batch: int, workers: int, device: torch.device
) -> torch.Tensor:
    """Read each image and cut it as for training, a batch at a time, the next one being read; the last batch.

    Raises UserError for an image that does not decode.
    """
    ahead, generator, view = Ahead(workers), torch.Generator().manual_seed(0), torch.empty(0)
    for start in range(0, len(places), batch):
        ahead.expect("inputs", places[start : start + batch * (1 + batches_ahead(batch))])
        pixels = []
        for one in ahead.each(places[start : start + batch]):
            if isinstance(one, UserError):
                raise one
            pixels.append(one)
        view = train_view(pixels, size, data, generator, device)
    return view
