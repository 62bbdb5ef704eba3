"""Read data sets whose splits are lists of files: find the lists and the images, and make a split of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TypeAlias

from promptcl.config import DataConfig
from promptcl.config.overrides import safe_yaml
from promptcl.data.archive import Tree, open_tree
from promptcl.data.files import FileSource
from promptcl.data.images import ImageSet
from promptcl.data.names import one_spelling
from promptcl.data.splits import Split
from promptcl.errors import UserError
from promptcl.runtime import disk

_MOST = 20_000_000  # characters of a YAML list: some 400,000 images
Rows: TypeAlias = "list[tuple[str, str]]"
"""Images of a split: the path in the tree, and the class."""


class Listed:
    """A folder or archive, and what is in it by the ends of paths: lists name images by paths of their own."""

    def __init__(self, config: DataConfig, what: str) -> None:
        """what: the folder or archive that is expected, for messages. Raises UserError where there is none."""
        if config.root is None:
            raise UserError(f"data.name={config.name} needs data.root=PATH, {what}")
        self.config, self.what = config, what
        self.tree: Tree = open_tree(disk.expanded(config.root), everything=True)
        self._paths = {one_spelling(path): path for path in self.tree.paths}
        self._ends: dict[str, str] = {}
        for path in sorted(self._paths, key=lambda path: (path.count("/"), path), reverse=True):
            self._ends[path.rpartition("/")[2]] = path

    def file(self, name: str) -> str:
        """Path of the file of that name which is nearest to the top. Raises UserError where there is none."""
        if name not in self._ends:
            raise UserError(f"{self.tree.where} has no {name}; expected {self.what} as data.root")
        return self._ends[name]

    def __contains__(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return name in self._ends

    def beside(self, name: str, folder: str) -> str:
        """Path of a folder that lies beside the file of that name."""
        return f"{self.file(name).rpartition('/')[0]}/{folder}".lstrip("/")

    def pairs(self, name: str) -> dict[str, str]:
        """The second cell of each line of a text by the first one. Raises UserError: a line with fewer cells."""
        return {row[0]: row[1] for row in self.table(name)}

    def lines(self, name: str) -> list[str]:
        """The lines of a text that are not empty. Raises UserError: it is not there, or no UTF-8."""
        path = self.file(name)
        try:
            text = self.tree.read(self._paths[path]).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.tree.where}/{path} is not UTF-8 text ({error}); get it again") from error
        return [line for line in text.splitlines() if line.strip()]

    def table(self, name: str, cells: int = 2, last: bool = False) -> list[list[str]]:
        """The lines of a text as so many cells with white space between; spaces are allowed in the last cell only, or
        with `last` in the first one.

        Raises UserError: a line with fewer cells.
        """
        rows = []
        for number, line in enumerate(self.lines(name), start=1):
            row = line.strip().rsplit(None, cells - 1) if last else line.split(None, cells - 1)
            if len(row) != cells:
                raise UserError(f"line {number} of {self.tree.where}/{self.file(name)} is {line[:80]!r}; get it again")
            rows.append([one_spelling(cell.strip()) for cell in row])
        return rows

    def columns(self, name: str) -> list[list[str]]:
        """Paths and labels of a YAML file with the lists `data` and `targets`, as CODA-Prompt's; rows of two cells.

        Raises UserError: it is no such file.
        """
        where, lines = f"{self.tree.where}/{self.file(name)}", self.lines(name)
        try:
            found = safe_yaml("\n".join(lines), most=_MOST)
            pairs = zip(found["data"], found["targets"], strict=True)
            return [[one_spelling(path.strip()), str(label)] for path, label in pairs]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} is no list of images, two lists `data` and `targets` of one length") from error

    def image(self, path: str, beside: str = "") -> str:
        """Path in the tree of an image that a list names, from the folder `beside` it, or from one above.

        Leading folders of the list's own are passed over. Raises UserError where there is no such image.
        """
        parts = [part for part in one_spelling(path.replace("\\", "/")).split("/") if part not in ("", ".")]
        folders = [beside.rstrip("/"), *(str(folder) for folder in PurePosixPath(beside).parents)] if beside else ["."]
        for start in range(len(parts)):
            for folder in folders:
                inner = "/".join(([] if folder in (".", "") else [folder]) + parts[start:])
                if inner in self._paths:
                    return self._paths[inner]
        raise UserError(f"'{path}' of a list in {self.tree.where} is not there; expected {self.what} as data.root")

    def path_and_label(self, name: str) -> list[tuple[str, str, str]]:
        """The images of a list with the lines `path label`, or of a YAML file: path in the tree, class and label.

        The class is the folder that an image lies in. Raises UserError: a label that is that of two classes.
        """
        beside, rows = self.file(name).rpartition("/")[0], []
        named: dict[str, str] = {}
        table = self.columns(name) if name.lower().endswith((".yaml", ".yml")) else self.table(name, last=True)
        for path, label in table:
            folder = path.replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
            if named.setdefault(label, folder) != folder:
                raise UserError(
                    f"{self.tree.where}/{self.file(name)} gives the label {label} to {named[label]} and {folder}; "
                    "expected one for each class"
                )
            rows.append((self.image(path, beside), folder, label))
        return rows

    def split(self, train: Rows, test: Rows, classes: Sequence[str]) -> Split:
        """Both halves, over one source; test is empty where validation_per_class makes it needless.

        Raises UserError: an image of none of the classes.
        """
        test = [] if self.config.validation_per_class is not None else test
        rows = [*train, *test]
        source = FileSource([path for path, _ in rows], self.tree.read, str(self.tree.where), self.config.cache_mb)
        number = {name: k for k, name in enumerate(classes)}
        odd = [name for _, name in rows if name not in number]
        if odd:
            raise UserError(
                f"{self.tree.where}: its lists have images of '{odd[0]}' to test and none to learn, or give its label "
                "to another class too; get them again"
            )
        labels = [number[name] for _, name in rows]
        cut = len(train)
        halves = [
            ImageSet(source, classes, labels[:cut], range(cut)),
            ImageSet(source, classes, labels[cut:], range(cut, len(rows))),
        ]
        return Split(*halves)
