"""DomainNet, 345 classes in six domains: data.root is a folder with clipart/, clipart_train.txt, clipart_test.txt, ...

Peng et al. 2019, arXiv 1812.01754. The official lists, with lines such as `clipart/zigzag/clipart_344_000001.jpg 344`,
make the split; domains arrive in the order of their names, or of data.order, and those without lists are left out.
Classes are called by their folders, in the order of the labels.
"""

from __future__ import annotations

from promptcl.config import DataConfig
from promptcl.data.images import ImageSet
from promptcl.data.lists import Listed
from promptcl.data.splits import Domain, ordered
from promptcl.errors import UserError

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def load_domains(config: DataConfig) -> list[Domain]:
    """One domain for each pair of lists. Raises UserError: no root, no lists, images or classes that are not there."""
    listed = Listed(config, "a folder with clipart/, clipart_train.txt, clipart_test.txt and so on")
    found = [name for name in DOMAINS if f"{name}_train.txt" in listed]
    if not found:
        raise UserError(f"{listed.tree.where} has no clipart_train.txt or the like; expected {listed.what}")
    parts = ("train",) if config.validation_per_class is not None else ("train", "test")
    names = ordered(found, config.order, "domains")
    lists = {(name, part): listed.path_and_label(f"{name}_{part}.txt") for name in names for part in parts}
    rows = [row for part in lists.values() for row in part]
    labels = dict[str, str]()
    for _, folder, label in rows:
        if labels.setdefault(label, folder) != folder:
            raise UserError(f"the lists of {listed.tree.where} give the label {label} to {labels[label]} and {folder}")
    classes = [labels[label] for label in sorted(labels, key=lambda text: (len(text), text))]
    # One source for all domains: one memory budget.
    whole = listed.split([(path, folder) for path, folder, _ in rows], [], classes).train
    halves, start = dict[tuple[str, str], ImageSet](), 0
    for key, part in lists.items():
        halves[key] = whole.select(range(start, start + len(part)))
        start += len(part)
    return [Domain(name, halves[name, "train"], halves.get((name, "test"), whole.select([]))) for name in names]
