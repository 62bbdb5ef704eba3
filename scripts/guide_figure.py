"""Draw docs/guide.png: what two tasks of digits leave behind, and how familiar the images are.

Command: python scripts/guide_figure.py     (needs matplotlib and `pip install "promptcl[demo]"`)
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np

from promptcl.config.schema import DataConfig
from promptcl.data.splits import load_split
from promptcl.learner.learner import Learner
from promptcl.recipes.load import load_config

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"
FIRST, SECOND = [str(digit) for digit in range(5)], [str(digit) for digit in range(5, 10)]


def main() -> None:
    """Two tasks, three panels, and the numbers in guide.json beside the figure."""
    split = load_split(DataConfig(name="mnist5k", train_per_class=40, test_per_class=40))
    old, new = split.test.of_classes(FIRST), split.test.of_classes(SECOND)
    learner = Learner(load_config("grow-demo"))
    learner.learn(split.train.of_classes(FIRST), name="monday")
    limit = learner.calibration.threshold
    assert limit is not None
    answers = {"learned": learner.predict(old), "never seen": learner.predict(new)}
    familiar = {name: np.array([one.familiarity for one in found]) for name, found in answers.items()}
    right = np.array([one.top[0][0] for one in answers["learned"]]) == np.array(old.classes)[old.labels]
    unknown = {name: values < limit for name, values in familiar.items()}
    before = learner.evaluate(old)
    learner.learn(split.train.of_classes(SECOND), name="tuesday")
    after = learner.evaluate(split.test)

    figure, (sheet, bars, histogram) = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=[0.8, 1.2, 1])
    tiles = [
        np.hstack([split.train.image(i)[0].numpy() for i in np.flatnonzero(split.train.labels == k)[:6]])
        for k in range(10)
    ]
    sheet.imshow(255 - np.vstack(tiles), cmap="gray")
    sheet.axhline(5 * 28, color="tab:orange", lw=2)
    sheet.set(title="monday: 0 to 4, tuesday: 5 to 9", xticks=[], yticks=[])
    classes = np.arange(10)
    share = {n: [100 * r / c for r, c in e.by_class.values()] for n, e in (("before", before), ("after", after))}
    bars.bar(classes[:5] - 0.2, share["before"], 0.4, label="after monday")
    bars.bar(classes + np.where(classes < 5, 0.2, 0), share["after"], 0.4, label="after tuesday, among ten")
    bars.set(title="right answers, % of 40 test digits", xticks=classes, ylim=(0, 118))
    bars.legend(loc="upper center", ncols=2, fontsize=8)
    histogram.hist(list(familiar.values()), bins=20, label=list(familiar))
    histogram.axvline(limit, color="black", ls="--", label=f"threshold {limit:.2f}")
    histogram.set(title="after monday: familiarity of the image", xlabel="ridge logit + 2 cosine")
    histogram.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "guide.png", dpi=90)
    kept = sum(after.by_class[name][0] for name in FIRST) / before.images
    numbers = {
        "accuracy_first_five_before": before.accuracy,
        "accuracy_first_five_after": 100 * kept,
        "accuracy_all_ten": after.accuracy,
        "threshold": limit,
        **{f"unknown_share_{name.replace(' ', '_')}": float(values.mean()) for name, values in unknown.items()},
        "unknown_share_right_answers": float(unknown["learned"][right].mean()),
    }
    (DOCS / "guide.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
