"""When training adapters in the first task pays: `grow-adapted` beside `grow`, by images a class and by classes.

Command: python benchmarks/adapted.py with the arguments of grid.py
Writes benchmarks/results/grid/adapted.json and the table in docs/results.md (`--table`: only that). CIFAR-100,
ViT-Ti/16 at 160 px; the first task has ten classes (or two), the second brings ten more; accuracy on validation images.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from features import SIZE, nth
from grid import PAGE, RESULTS, arguments, fill, lines

from promptcl.config.schema import DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.runtime.provenance import git_commit

OUT = RESULTS.with_name("adapted.json")
CASES = ((10, 5), (10, 14), (10, 50), (10, 100), (2, 50))  # classes of the first task, images a class
RECIPES = ("grow", "grow-adapted")


def learn(recipe: str, settings: list[str], train: ImageSet, held: ImageSet, first: int, images: int) -> dict[str, Any]:
    """Accuracy on the first task's classes after it, on all after the second, and seconds."""
    learner, seconds, accuracies = Learner(load_config(recipe, settings)), [], []
    for some in (train.classes[:first], train.classes[first : first + 10]):
        task = train.of_classes(some)
        seconds.append(learner.learn(task.select(nth(task, range(images)))).seconds)
        accuracies.append(learner.evaluate(held.of_classes(learner.classes)).accuracy)
    return {"after the first": accuracies[0], "after the second": accuracies[1], "seconds": seconds}


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__ or "", draws=1)
    if not given.table:
        split = load_split(DataConfig(name="folder", root=str(given.cifar100), test_per_class=20))
        held = split.train.select(nth(split.train, range(100, 120)))
        settings = ["backbone.name=vit_tiny_patch16_224", f"backbone.weights={given.weights}", "device=cpu"]
        settings += [f"backbone.image_size={SIZE}", "backbone.precision=fp32"]
        rows = []
        for first, images in CASES:
            runs = {recipe: learn(recipe, settings, split.train, held, first, images) for recipe in RECIPES}
            rows.append({"classes": first, "images": images, "runs": runs})
            print(rows[-1], flush=True)
        OUT.write_text(json.dumps({"rows": rows, "git_commit": git_commit()}, indent=1) + "\n", encoding="utf-8")
    table: list[list[object]] = []
    for row in json.loads(OUT.read_text(encoding="utf-8"))["rows"]:
        cells: list[object] = [f"{row['classes']} classes of {row['images']} images, then 10 more"]
        for when in ("after the first", "after the second"):
            cells += [f"{row['runs'][recipe][when]:.1f}" for recipe in RECIPES]
        table.append([*cells, *(f"{float(np.sum(row['runs'][recipe]['seconds'])):.0f}" for recipe in RECIPES)])
    names = [f"`{recipe}`, {when}" for when in ("first task", "both") for recipe in RECIPES]
    fill(PAGE, {"adapted": lines(["", *names, *(f"`{recipe}`, s" for recipe in RECIPES)], table)})


if __name__ == "__main__":
    main()
