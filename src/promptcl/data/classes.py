"""The one reader of class folders: on disk and in archives, to learn, to test and to train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from promptcl.data.archive import Tree
from promptcl.data.kinds import HEIF_ENDINGS, KINDS, is_image, other_kind
from promptcl.data.levels import Level, opened
from promptcl.data.names import one_spelling
from promptcl.errors import UserError

ANNOTATIONS = "val_annotations.txt"
"""Tiny-ImageNet's list of the classes of its validation images: file, class and four numbers, with tabs."""


def read_classes(tree: Tree, level: Level, notes: list[str]) -> dict[str, list[str]]:
    """The images of each class in a folder with one folder a class, sorted; a class without images has an empty list.

    Names that differ only in how an accent is written are one class. What should be known of how the folder was read
    is added to `notes`, a sentence each.
    Raises UserError: no class folders, those of a split in their place, a name with unprintable characters.
    """
    start, level = level.folder, opened(level, tree.where.resolve().name if tree.where.is_dir() else None)
    where = f"{tree.where}/{level.folder}".rstrip("/")
    classes = _annotated(tree, level)
    if classes is None:
        _refuse_splits(tree, level, where)
        classes = {}
        for name, paths in level.folders.items():
            classes.setdefault(one_spelling(name), []).extend(path for path in paths if is_image(path))
        notes += _doubts(level, where, opened_one=level.folder != start)
    if not classes:
        raise UserError(
            f"{where} has no class folders; expected one for each class, {where}/CLASS/IMAGE.jpg{but(tree)}"
        )
    for name in classes:
        if not name.isprintable():  # a name that is no UTF-8, for one
            raise UserError(f"the class folder {name!a} in {where} has unprintable characters; rename it")
    return {name: sorted(classes[name]) for name in sorted(classes)}


def no_images(tree: Tree, name: str) -> UserError:
    """The error for a class without any image."""
    return UserError(f"class '{name}' in {tree.where} has no images; add a {KINDS}, or remove its folder{but(tree)}")


def _annotated(tree: Tree, level: Level) -> dict[str, list[str]] | None:
    """The classes that Tiny-ImageNet's list names, where it lies beside one folder of images; else None."""
    table = f"{level.folder}{ANNOTATIONS}"
    if table not in level.files or len(level.below) > 1:
        return None
    folder = f"{level.folder}{next(iter(level.below))}/" if level.below else level.folder
    classes: dict[str, list[str]] = {}
    images = set(level.direct).union(*level.below.values())
    for number, line in enumerate(tree.read(table).decode("utf-8-sig", "replace").splitlines(), start=1):
        file, _, rest = line.partition("\t")
        name = one_spelling(rest.partition("\t")[0].strip())
        if not line.strip():
            continue
        if not name or f"{folder}{file}" not in images:
            raise UserError(
                f"line {number} of {tree.where}/{table} is {line[:80]!r}; expected the name of an image in "
                f"{folder} and its class, with a tab"
            )
        classes.setdefault(name, []).append(f"{folder}{file}")
    return classes


def _refuse_splits(tree: Tree, level: Level, where: str) -> None:
    """Raise UserError where folders are those of splits, or each of them holds such ones."""
    inner = {name: level.inside(name) for name in level.below} if not level.direct else {}
    found = level.splits()
    if not found and inner and all(_holds_splits(one) for one in inner.values()):
        first = min(inner)
        found, level, where = inner[first].splits(), inner[first], f"{where}/{first}"
    if not found:
        return
    usual = {"train": 0, "val": 1, "test": 2}
    names = sorted(found, key=lambda name: (usual[found[name]], name))
    best = names[0]
    inside = level.inside(best)
    if inside.direct and not inside.below:
        raise UserError(
            f"{where} holds {', '.join(sorted(found))} and no classes: images lie directly in {best}; put them into "
            f"folders, {where}/{best}/CLASS/IMAGE.jpg, or give the folder another name if it is a class"
        )
    deeper = opened(inside).folder.rstrip("/")
    write = f"give {tree.where}/{deeper}" if tree.where.is_dir() else f"unpack it and give the folder {deeper}"
    raise UserError(
        f"{where} holds {', '.join(sorted(found))} and no classes; {write}"
        + (f", or one of the others ({', '.join(names[1:])})" if len(names) > 1 else "")
        + (f", or give {best} another name if it is a class" if len(level.below) > len(names) else "")
    )


def _holds_splits(level: Level) -> bool:
    """Whether a folder that stands where a class should holds splits of classes: train/CLASS/..., test/CLASS/..."""
    inside = [level.inside(name) for name in level.splits()] if not level.direct else []
    return any(one.below and not one.direct for one in inside)


def _doubts(level: Level, where: str, opened_one: bool) -> list[str]:
    """Sentences about class folders that may be of the wrong level."""
    names = sorted(level.below)
    if opened_one and len(names) == 1:
        return [f"{where} was opened, which all images are in: the only class is {names[0]!r}"]
    if level.direct or len(names) < 2:
        return []
    inside = [level.inside(name) for name in names]
    same = sorted(inside[0].below)
    if len(same) > 1 and all(not one.direct and sorted(one.below) == same for one in inside):
        return [
            f"each of {_some(names)} in {where} holds the same folders, {_some(same)}: if those are the classes, give "
            f"{where}/{names[0]}"
        ]
    return []


def left_out(tree: Tree, used: Iterable[str], everything: bool = False) -> list[str]:
    """Sentences about what in the tree is not among the `used` paths: files that look like images, or `everything`."""
    read = set(used)
    unread = [path for path in sorted(tree.paths) if path not in read and not path.endswith(("/", ANNOTATIONS))]
    kinds = Counter(kind for path in unread if (kind := other_kind(path))) + Counter(tree.lost.values())
    notes = []
    if kinds:
        parts = [f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda one: (-one[1], one[0]))]
        more = next((f"; pip install 'promptcl[heif]' to read {kind}" for kind in HEIF_ENDINGS if kind in kinds), "")
        notes.append(f"{_files(kinds.total())} in {tree.where} left out: {', '.join(parts)}{more}")
    rest = [path for path in unread if not other_kind(path) and (everything or is_image(path))]
    if rest:
        some = ", ".join(rest[:3]) + (", ..." if len(rest) > 3 else "")
        notes.append(f"{_files(len(rest))} in {tree.where} left out, being no image in a folder of its class: {some}")
    if tree.skipped:
        notes.append(f"{_some(tree.skipped)} in {tree.where} left out, being a learner or a run")
    return notes


def but(tree: Tree) -> str:
    """What looks like images, or is a learner or a run, and was left out: in brackets at the end of an error."""
    kinds = Counter(other_kind(path) for path in tree.paths if other_kind(path)) + Counter(tree.lost.values())
    parts = [f"{n} {kind}" for kind, n in sorted(kinds.items())] + tree.skipped
    return f" ({', '.join(parts)} left out)" if parts else ""


def _files(number: int) -> str:
    return f"{number} file{'s' if number > 1 else ''}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
