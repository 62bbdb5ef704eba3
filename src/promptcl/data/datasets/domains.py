"""The same classes in several domains: a folder or archive with DOMAIN/CLASS/... or DOMAIN.npz (data.root=PATH).

Domains arrive in the order of their names, or of data.order. Without split.tsv the first 80 % of each class of each
domain (sorted by path) are training. split.tsv, tab-separated with the columns `path split domain class`, takes
the place of the folder names: path is relative to it, split is train or test. A domain may have DOMAIN/train/CLASS and
DOMAIN/test/CLASS. An .npz (see data.name=npz) states its own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import NamedTuple

from promptcl.config import DataConfig
from promptcl.data.archive import Tree, open_tree
from promptcl.data.classes import left_out
from promptcl.data.datasets import npz
from promptcl.data.files import FileSource
from promptcl.data.images import ImageSet
from promptcl.data.kinds import never
from promptcl.data.levels import Level, filler, opened, plain_images, split_of
from promptcl.data.names import one_spelling
from promptcl.data.splits import Domain, in_stored_order, ordered
from promptcl.errors import UserError
from promptcl.runtime import disk

HEADER = ("path", "split", "domain", "class")


class Row(NamedTuple):
    """One image: its file, and what split, domain and class it belongs to."""

    path: str
    split: str  # train, test, or empty: not said
    domain: str
    label: str


def load_domains(config: DataConfig) -> list[Domain]:
    """The domains of `config.root`, all with the same classes in the same order.

    Raises UserError: no root, fewer than one domain, a bad split.tsv, a domain without images or with other classes.
    """
    if config.root is None:
        raise UserError("data.name=domains needs data.root=PATH, a folder or an archive with DOMAIN/CLASS/IMAGE.png")
    root = disk.expanded(config.root)
    found = sorted(file for file in root.glob("*.npz") if not never(file.name)) if root.is_dir() else []
    files = {one_spelling(file.stem): file for file in found}
    if files:
        domains = []
        for name in ordered(list(files), config.order, "domains"):
            domains.append(Domain(name, *npz.load(config.model_copy(update={"root": str(files[name])}))))
        return _same_classes(domains)
    tree = open_tree(root, everything=True)
    tables = sorted((p for p in tree.paths if p.rpartition("/")[2] == "split.tsv"), key=lambda p: p.count("/"))
    notes: list[str] = []
    rows = read_table(tree, tables[0]) if tables else _by_folder(tree, notes)
    domains = _domains(tree, rows, config)
    notes += left_out(tree, tree.paths if tables else [row.path for row in rows])  # a table decides what is read
    for domain in domains:
        domain.train.notes = domain.test.notes = tuple(notes)
    return domains


def read_table(tree: Tree, path: str) -> list[Row]:
    """The rows of split.tsv. Raises UserError: not a UTF-8 table, a wrong header, cell or path."""
    try:
        lines = tree.read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{tree.where}/{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    table = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not table or not set(HEADER) <= set(table[0]):
        raise UserError(f"{tree.where}/{path} starts with {table[:1]}; expected {' '.join(HEADER)} with tabs")
    columns = [table[0].index(name) for name in HEADER]
    folder, known = path[: -len("split.tsv")], {one_spelling(p): p for p in tree.paths}
    rows = []
    for number, cells in enumerate(table[1:], start=2):
        if not any(cells):
            continue
        image, split, domain, label = (cells[i] if i < len(cells) else "" for i in columns)
        if split not in ("train", "test") or not (image and domain and label):
            raise UserError(f"line {number} of {tree.where}/{path} is {cells}; expected {' '.join(HEADER)}")
        file = known.get(one_spelling(folder + image.removeprefix("./")))
        if file is None:
            raise UserError(f"line {number} of {tree.where}/{path} names '{image}', which does not exist there")
        rows.append(Row(file, split, one_spelling(domain), one_spelling(label)))
    return rows


def _by_folder(tree: Tree, notes: list[str]) -> list[Row]:
    """The images of DOMAIN/CLASS/..., which may be inside folders around all, with splits of their own in each domain.

    Raises UserError: a domain without images or without classes, splits in the place of domains.
    """
    level = Level(tree.paths)
    while len(level.folders) == len(level.below) == 1:
        inner = level.inside(next(iter(level.below)))
        if not any(inner.inside(name).below for name in inner.below):
            break
        level = inner
    where = f"{tree.where}/{level.folder}".rstrip("/")
    if splits := level.splits():
        raise UserError(
            f"{where} holds {', '.join(sorted(splits))}, which are no domains; write data.name=folder, or put them "
            "into a folder for each domain, DOMAIN/train/CLASS/IMAGE.png"
        )
    rows = []
    for name in sorted(level.folders):
        if name not in level.below:
            raise UserError(f"domain '{name}' in {tree.where} has no images; add {name}/CLASS/IMAGE.png or remove it")
        rows += _in_domain(level.inside(name), one_spelling(name), where, notes)
    return sorted(rows)


def _in_domain(level: Level, domain: str, where: str, notes: list[str]) -> list[Row]:
    """The images of one domain: of its class folders, or of those in its train and test folders."""
    level = _classes_of(level)
    splits = level.splits()
    if not splits:
        if not level.below or plain_images(level):
            here = f"{level.folder}{next(iter(level.below), '')}".rstrip("/")
            raise UserError(f"domain '{domain}' in {where} has no class folders; its images lie directly in {here}")
        return _rows(level, "", domain)
    chosen = {"train": _one(splits, "train"), "test": _one(splits, "test") or _one(splits, "val")}
    rows: list[Row] = []
    for split, name in chosen.items():
        inner = _classes_of(level.inside(name)) if name else None
        if inner is None or not inner.below:
            raise UserError(
                f"domain '{domain}' in {where} holds {', '.join(sorted(level.folders))} and no classes; expected "
                f"{domain}/CLASS/IMAGE.png, or {domain}/train/CLASS and {domain}/test/CLASS"
            )
        rows += _rows(inner, split, domain)
    if others := sorted(set(level.below) - set(chosen.values())):
        notes.append(
            f"domain '{domain}' is split into {chosen['train']} and {chosen['test']}: {', '.join(others)} left out"
        )
    elif chosen["test"] and splits[chosen["test"]] == "val":
        notes.append(f"domain '{domain}' has no test folder: its folder {chosen['test']} takes the place of it")
    return rows


def _classes_of(level: Level) -> Level:
    """The level of the classes, inside a folder that wraps them and is called like what is inside, or like a split."""
    inner = opened(level)
    names = inner.folder[len(level.folder) :].split("/")[:-1]
    wraps = all(filler(name) or split_of(name) or name in level.folder.split("/") for name in names)
    return inner if wraps or len(inner.below) > 1 else level


def _one(splits: dict[str, str], split: str) -> str | None:
    """The folder that is a split, preferably one called so; None where there is none."""
    names = [name for name, what in splits.items() if what == split]
    return min(names, key=lambda name: (name.lower() != split, name), default=None)


def _rows(level: Level, split: str, domain: str) -> list[Row]:
    return [Row(path, split, domain, one_spelling(name)) for name, paths in level.below.items() for path in paths]


def _domains(tree: Tree, rows: list[Row], config: DataConfig) -> list[Domain]:
    """The domains that the rows name, in their order of arrival, all over one source and one list of classes."""
    names = sorted({row.domain for row in rows})
    if not names:
        raise UserError(f"{tree.where} has no images in DOMAIN/CLASS/; expected one folder for each domain")
    source = FileSource([row.path for row in rows], tree.read, str(tree.where), config.cache_mb)
    classes = sorted({row.label for row in rows})
    if len(classes) == 1:
        raise UserError(
            f"all images of {tree.where} are of one class, '{classes[0]}' (such as {rows[0].path}); expected "
            "DOMAIN/CLASS/IMAGE.png with several classes"
        )
    number = {name: k for k, name in enumerate(classes)}

    def images(domain: str, splits: Iterable[str]) -> ImageSet:
        chosen = [i for i, row in enumerate(rows) if row.domain == domain and row.split in splits]
        return ImageSet(source, classes, [number[rows[i].label] for i in chosen], chosen)

    domains = []
    for name in ordered(names, config.order, "domains"):
        whole = images(name, [""])
        train, test = in_stored_order(whole) if len(whole) else (images(name, ["train"]), images(name, ["test"]))
        domains.append(Domain(name, train, test))
    return domains


def _same_classes(domains: list[Domain]) -> list[Domain]:
    """The domains with their classes in the order of the first one."""
    name, first = domains[0].name, domains[0].train.classes
    for domain in domains[1:]:
        if odd := set(first) ^ set(domain.train.classes):
            raise UserError(
                f"domains '{name}' and '{domain.name}' have different classes ('{min(odd)}' is in one only); "
                "all domains need the same class names"
            )
    return [
        Domain(p.name, p.train.of_classes(first), p.test.of_classes(first) if len(p.test) else p.test) for p in domains
    ]
