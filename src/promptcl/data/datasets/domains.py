"""The same classes in several domains: a folder or archive with DOMAIN/CLASS/... or DOMAIN.npz (data.root=PATH).

Domains arrive in the order of their names, or of data.order. Without split.tsv the first 80 % of each class of each
domain (sorted by path) are training. split.tsv, tab-separated with the header `path split domain class`, takes the
place of the folder names: path is relative to it, split is train or test. An .npz (see data.name=npz) states its own.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from promptcl.config import DataConfig
from promptcl.data.archive import Tree, open_tree
from promptcl.data.datasets import npz
from promptcl.data.decode import ENDINGS
from promptcl.data.images import FileSource, ImageSet
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
    files = {file.stem: file for file in sorted(root.glob("*.npz"))} if root.is_dir() else {}
    if files:
        domains = []
        for name in ordered(list(files), config.order, "domains"):
            domains.append(Domain(name, *npz.load(config.model_copy(update={"root": str(files[name])}))))
        return _same_classes(domains)
    tree = open_tree(root, everything=True)
    tables = sorted((p for p in tree.paths if p.rpartition("/")[2] == "split.tsv"), key=lambda p: p.count("/"))
    rows = read_table(tree, tables[0]) if tables else _by_folder(tree)
    return _domains(tree, rows, config)


def read_table(tree: Tree, path: str) -> list[Row]:
    """The rows of split.tsv. Raises UserError: not a UTF-8 table, a wrong header, cell or path."""
    try:
        lines = tree.read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{tree.where}/{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    table = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not table or tuple(table[0]) != HEADER:
        raise UserError(f"{tree.where}/{path} starts with {table[:1]}; expected {' '.join(HEADER)} with tabs")
    folder, known = path[: -len("split.tsv")], {_plain(p): p for p in tree.paths}
    rows = []
    for number, cells in enumerate(table[1:], start=2):
        if not any(cells):
            continue
        if len(cells) != len(HEADER) or cells[1] not in ("train", "test") or not all(cells):
            raise UserError(f"line {number} of {tree.where}/{path} is {cells}; expected {' '.join(HEADER)}")
        file = known.get(_plain(folder + cells[0].removeprefix("./")))
        if file is None:
            raise UserError(f"line {number} of {tree.where}/{path} names '{cells[0]}', which does not exist there")
        rows.append(Row(file, cells[1], _plain(cells[2]), _plain(cells[3])))
    return rows


def _plain(name: str) -> str:
    """Give names that look the same one spelling: macOS writes an accent in file names as a letter of its own."""
    return unicodedata.normalize("NFC", name)


def _by_folder(tree: Tree) -> list[Row]:
    """The images of DOMAIN/CLASS/..., which may be inside one folder around all.

    Raises UserError: a domain without images.
    """
    tops = {p.split("/")[0] for p in tree.paths if "/" in p and not p.startswith(".")}
    depth = max((p.rstrip("/").count("/") for p in tree.paths if p.lower().endswith(ENDINGS)), default=0)
    skip = 1 if len(tops) == 1 and depth >= 3 else 0
    rows, empty = [], set()
    for path in sorted(tree.paths):
        names = path.split("/")[skip:]
        if len(names) < 2 or any(name.startswith(".") for name in names):
            continue
        if len(names) >= 3 and path.lower().endswith(ENDINGS):
            rows.append(Row(path, "", _plain(names[0]), _plain(names[1])))
        else:
            empty.add(_plain(names[0]))
    for name in sorted(empty - {row.domain for row in rows}):
        raise UserError(f"domain '{name}' in {tree.where} has no images; add {name}/CLASS/IMAGE.png or remove it")
    return rows


def _domains(tree: Tree, rows: list[Row], config: DataConfig) -> list[Domain]:
    """The domains that the rows name, in their order of arrival, all over one source and one list of classes."""
    names = sorted({row.domain for row in rows})
    if not names:
        raise UserError(f"{tree.where} has no images in DOMAIN/CLASS/; expected one folder for each domain")
    source = FileSource([row.path for row in rows], tree.read, str(tree.where), config.cache_mb)
    classes = sorted({row.label for row in rows})
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
