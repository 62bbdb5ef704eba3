"""When training adapters in the first task pays: `grow-adapted` beside `grow`, by images a class and by classes.

Command: python benchmarks/adapted.py with the arguments of grid.py
Writes benchmarks/results/grid/adapted.json, and the table between `<!-- adapted -->` and `<!-- end -->` in
docs/results.md (`--table`: only that). ViT-Ti/16
at 160 px; a first task and a second one with more classes; accuracy on validation images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from features import SIZE, data, nth
from grid import PAGE, RESULTS, arguments, fill, lines

from promptcl.data.images import ImageSet
from promptcl.data.splits import load_split
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config
from promptcl.runtime.provenance import git_commit

OUT = RESULTS.with_name("adapted.json")
# data set, classes of the first task, classes that follow, images a class
CASES = (
    ("cifar100", 10, 10, 14),
    ("cifar100", 10, 10, 50),
    ("cifar100", 2, 10, 50),
    ("mnist", 5, 5, 14),
)
RECIPES = ("grow", "grow-adapted")


def learn(recipe: str, settings: list[str], tasks: Sequence[ImageSet], held: ImageSet) -> dict[str, Any]:
    """Accuracy on the classes of the first task after it, on all after the second, and seconds."""
    learner, seconds, accuracies = Learner(load_config(recipe, settings)), [], []
    for task in tasks:
        seconds.append(learner.learn(task).seconds)
        accuracies.append(learner.evaluate(held.of_classes(learner.classes)).accuracy)
    return {"after the first": accuracies[0], "after the second": accuracies[1], "seconds": seconds}


def main() -> None:
    """Measure and write."""
    given = arguments(__doc__ or "", draws=1)
    if not given.table:
        settings = ["backbone.name=vit_tiny_patch16_224", f"backbone.weights={given.weights}", "device=cpu"]
        settings += [f"backbone.image_size={SIZE}", "backbone.precision=auto"]
        rows = []
        for name, first, more, images in CASES:
            train = load_split(data(name, given.cifar100 if name == "cifar100" else given.five)).train
            held = train.select(nth(train, range(100, 120)))
            kept = train.select(nth(train, range(images)))
            tasks = [kept.of_classes(train.classes[:first]), kept.of_classes(train.classes[first : first + more])]
            runs = {recipe: learn(recipe, settings, tasks, held) for recipe in RECIPES}
            rows.append({"data": name, "classes": [first, more], "images": images, "runs": runs})
            print(rows[-1], flush=True)
        OUT.write_text(json.dumps({"rows": rows, "git_commit": git_commit()}, indent=1) + "\n", encoding="utf-8")
    table: list[list[object]] = []
    for row in json.loads(OUT.read_text(encoding="utf-8"))["rows"]:
        cells: list[object] = [
            f"{row['data']}: {row['classes'][0]} classes of {row['images']} images, then {row['classes'][1]} more"
        ]
        for when in ("after the first", "after the second"):
            cells += [f"{row['runs'][recipe][when]:.1f}" for recipe in RECIPES]
        table.append([*cells, *(f"{float(np.sum(row['runs'][recipe]['seconds'])):.0f}" for recipe in RECIPES)])
    names = [f"`{recipe}`, {when}" for when in ("first task", "both") for recipe in RECIPES]
    fill(PAGE, {"adapted": lines(["", *names, *(f"`{recipe}`, s" for recipe in RECIPES)], table)})


if __name__ == "__main__":
    main()
