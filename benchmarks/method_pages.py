"""Write a page for each method, docs/methods/NAME.md: `python benchmarks/method_pages.py`; with `--check` only compare.

What it is comes from the docstring of its file; what enters the blocks from a pass of a small ViT of six blocks after
two tasks; options from their docstrings; commands, where it differs and what is published from the heads of its
recipes; numbers from benchmarks/results, with what is said of a row in rows.yaml (`says`).
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from table import RESULTS, ROOT, load_row, read_rows, spread

from promptcl.backbone import Backbone, Change, Insert, Prefix, Tokens, Weight
from promptcl.config import Config, Section
from promptcl.data.splits import load_split
from promptcl.data.stream import Task, class_incremental
from promptcl.learner.learner import Learner
from promptcl.methods._base import load_method
from promptcl.recipes import available, load_config

PAGES = ROOT / "docs" / "methods"
RECIPES = ROOT / "src" / "promptcl" / "recipes"
PAPER = {file.parent.name for file in RESULTS.glob("paper/*/rows.yaml")}
Numbers = dict[str, list[tuple[str, str, list[dict[str, Any]], str]]]


def main(arguments: list[str]) -> int:
    """Bring the pages up to date, or with `--check` say (exit code 1) which are not."""
    numbers, changed = measured(), []
    PAGES.mkdir(exist_ok=True)
    for name in available("methods"):
        text, file = page(name, numbers), PAGES / f"{name}.md"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            changed.append(file.name)
            if arguments != ["--check"]:
                file.write_text(text, encoding="utf-8")
    if changed and arguments == ["--check"]:
        print(f"not current: {', '.join(changed)}; run: python benchmarks/method_pages.py", file=sys.stderr)
        return 1
    return 0


def page(name: str, numbers: Numbers) -> str:
    """The page of a method."""
    model = load_method(name)
    doc = inspect.getdoc(sys.modules[model.__module__]) or ""
    title, *rest = doc.split("\n\n", 1)[0], *doc.split("\n\n")[1:]
    learned, _, passes = model.about.rpartition("; ")
    parts = [
        f"# `{name}`",
        "Written by `python benchmarks/method_pages.py`; symbols and public code: [methods.md](../methods.md).",
        title,
        *rest,
        f"**Learned**: {learned}. **A test image through the ViT**: {passes}.",
        "## What enters the blocks",
        "Of a ViT of six blocks, with the default options, for a test image after two tasks.",
        f"```text\n{drawing(name)}\n```",
        "## Options",
        options_of(model.Options),
        *recipes_of(name),
        "## Numbers here",
        *numbers_of(numbers.get(name, [])),
    ]
    return "\n\n".join(parts) + "\n"


def drawing(name: str) -> str:
    """What a test image passes through: a line for each run of blocks that get the same, pass by pass."""
    base, backbone, tasks = small()
    options = load_method(name).Options().model_dump()
    memory = base.memory.model_copy(update={"per_class": 2})  # some learn from nothing else
    learner = Learner(base.model_copy(update={"method": {"name": name, **options}, "memory": memory}), backbone)
    for task in tasks[:2]:
        learner.learn(task.train)
    passes = list(watched(learner, tasks[0].test.select([0])))
    lines = []
    for number, blocks in enumerate(passes, 1):
        head = f"pass {number}  " if len(passes) > 1 else ""
        start = 0
        for what, group in itertools.groupby(blocks):
            count = len(list(group))
            where = f"block {start}" if count == 1 else f"blocks {start}-{start + count - 1}"
            lines.append(f"{head}{where:<13}{what}")
            head, start = " " * len(head), start + count
    return "\n".join(lines)


@functools.cache
def small() -> tuple[Config, Backbone, list[Task]]:
    """Settings, the ViT of the demo with random values, and tasks of two digits."""
    settings = ["device=cpu", "train.epochs=1", "data.train_per_class=2", "data.test_per_class=1", "tasks=5"]
    vit = ["backbone.weights=random", "backbone.image_size=32"]
    base = load_config("demo", [*settings, *vit])
    tasks = class_incremental(load_split(base.data), 5, base.data.class_order, base.seed)
    return base, Backbone.create(base.backbone), tasks


def watched(learner: Learner, images: Any) -> Iterator[list[str]]:
    """What each block gets in each pass that one image takes to be answered."""
    passes: list[list[str]] = []
    whole, of_block = Backbone._enter_last, Backbone._inserts_of

    def enter(backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
        passes.append([])
        return whole(backbone, *args, **kwargs)

    def inserts(backbone: Backbone, layer: int, *args: Any) -> Any:
        found = of_block(backbone, layer, *args)
        own = any(p.requires_grad for p in backbone.vit.blocks[layer].parameters())
        passes[-1].append(said(found, own))
        return found

    try:
        setattr(Backbone, "_enter_last", enter)  # noqa: B010 - a pass is watched, not changed
        setattr(Backbone, "_inserts_of", inserts)  # noqa: B010
        learner.evaluate(images)
    finally:
        setattr(Backbone, "_enter_last", whole)  # noqa: B010
        setattr(Backbone, "_inserts_of", of_block)  # noqa: B010
    yield from passes


def said(inserts: Sequence[Insert], trained: bool) -> str:
    """What a block gets, in words; `trained`: it is of a ViT that the method trains."""
    words = [f"{one.tokens_BLD.shape[1]} tokens in front, from here on" for one in inserts if isinstance(one, Tokens)]
    rows = sum(one.keys_BLD.shape[1] for one in inserts if isinstance(one, Prefix))
    words += [f"{rows} rows of keys and values in front"] if rows else []
    places = list(dict.fromkeys(one.place for one in inserts if isinstance(one, Change)))
    words += [f"changed: {', '.join(places)}"] if places else []
    merged = [one.place for one in inserts if isinstance(one, Weight)]
    words += [f"merged weights: {', '.join(merged)}"] if merged else []
    return "; ".join(words) or ("trained" if trained else "as pre-trained")


def options_of(options: type[Section]) -> str:
    """A table of the options, with what their docstrings say."""
    texts: dict[str, str] = {}
    for kind in reversed([kind for kind in options.__mro__ if issubclass(kind, Section) and kind is not Section]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
        for line, after in itertools.pairwise([*body, None]):
            if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                texts[ast.unparse(line.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    if not options.model_fields:
        return "None."
    defaults = options().model_dump(mode="json")
    rows = [f"| `{key}` | `{json.dumps(defaults[key])}` | {texts[key]} |" for key in options.model_fields]
    return "\n".join(["| `method.` | default | |", "|:--|:--|:--|", *(row.replace("|s|", "s") for row in rows)])


def recipes_of(name: str) -> list[str]:
    """What the heads of the recipes of a method say of sources, commands, numbers and differences."""
    found = []
    for file in sorted(RECIPES.glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        section = (yaml.safe_load(text) or {}).get("method", {})
        if section.get("name") != name:
            continue
        head = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        head = [as_code(line) if line.startswith("Command: ") else line for line in head]
        fields = re.split(r" (?=(?:Source|Command|Expected|Differs from the paper in): )", " ".join(head))
        kept = [re.split(r" (?=(?:Time|Hardware|Rehearsal[^:]*): )", field)[0] for field in fields[1:]]
        found += [
            f"## Recipe `{file.stem}`",
            *(f"*{one.partition(': ')[0]}*: {one.partition(': ')[2]}" for one in kept),
        ]
    return found


def as_code(line: str) -> str:
    """A line `Command: promptcl ...  (more)` with the command as code, ended by a stop."""
    command, _, more = line.removeprefix("Command: ").partition("  ")
    return f"Command: `{command}` {more.strip()}".rstrip() + "."


def measured() -> Numbers:
    """Of each method the rows of all tables, those of paper/ too: table, label, runs, what is said of it."""
    found: Numbers = {}
    for folder in sorted(path.parent for path in RESULTS.rglob("rows.yaml")):
        for row in read_rows(folder)[0]:
            if not (folder / row["row"]).exists():  # a comparison may have rows that are still to be measured
                continue
            runs = load_row(folder / row["row"])
            method = runs[0]["config"]["method"]["name"]
            label = row.get("label") or f"`{row['method']}`"
            found.setdefault(method, []).append((folder.name, label, runs, row.get("says", "")))
    return found


def numbers_of(rows: list[tuple[str, str, list[dict[str, Any]], str]]) -> list[str]:
    """The rows of all tables that are of a method, and what is said of them."""
    if not rows:
        return ["Not measured here."]
    lines = [
        "| table | row | last accuracy (A_T) % | A-bar % | forgetting | seeds |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for table, label, runs, _ in rows:
        keys = ("average_accuracy", "average_incremental_accuracy", "forgetting")
        cells = [spread([run.get(key) for run in runs]) for key in keys]
        lines.append(f"| {table} | {label} | {' | '.join(cells)} | {len(runs)} |")
    says = list(dict.fromkeys(said for *_, said in rows if said))
    tables = {table for table, *_ in rows}
    pages = ["[results.md](../results.md)"] if tables - PAPER else []
    pages += ["[paper-tables.md](../paper-tables.md) (`l2p-table...`)"] if tables & PAPER else []
    return ["\n".join(lines), f"Commands and protocols: {', '.join(pages)}.", *says]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
