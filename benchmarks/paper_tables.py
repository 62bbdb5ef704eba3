"""Write docs/paper-tables.md's tables, published against measured: `python benchmarks/paper_tables.py`.

With `--check` the page is only compared. The rows and the published numbers are those that a recipe lists for
`promptcl compare`; what was measured is benchmarks/results/paper/RECIPE/ROW/SEED.json, made by
`python benchmarks/run.py paper/RECIPE`. A table stands between `<!-- table: RECIPE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import sys

from marked import write
from table import RESULTS, ROOT, load_row, spread

from promptcl.cli.compare import folder_of
from promptcl.recipes.load import Compared, compared

PAGE = ROOT / "docs" / "paper-tables.md"
TABLES = [f"l2p-table{number}-lite" for number in (1, 3, 4)]
HEAD = (
    "| | published: accuracy / forgetting | measured: accuracy % | forgetting | learning accuracy % | seeds |\n"
    "|:--|--:|--:|--:|--:|--:|\n"
)


def main(arguments: list[str]) -> int:
    """Bring the page up to date, or with `--check` say (exit code 1) that it is not."""
    tables = {name: table(name) for name in TABLES}
    return write(PAGE, tables, "python benchmarks/paper_tables.py", check=arguments == ["--check"])


def table(recipe: str) -> str:
    """The rows of a recipe's comparison, with what was measured of them."""
    return HEAD + "".join(row(recipe, one) for one in compared(recipe))


def row(recipe: str, one: Compared) -> str:
    """A row; dashes where nothing was measured yet."""
    folder = RESULTS / "paper" / recipe / folder_of(one.method)
    cells = ["-"] * 4
    if folder.is_dir():
        runs = load_row(folder)
        keys = ("average_accuracy", "forgetting", "learning_accuracy")
        cells = [*(spread([run.get(key) for run in runs]) for key in keys), str(len(runs))]
    return f"| `{one.method}` | {one.published or '-'} | {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
