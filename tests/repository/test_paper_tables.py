"""docs/paper-tables.md is made of recipes and results, and each of its tables can be run."""

from __future__ import annotations

import paper_tables
import pytest
import yaml
from table import RESULTS

from promptcl.cli.compare import entries, folder_of, split
from promptcl.errors import UserError
from promptcl.recipes import available
from promptcl.recipes.load import compared, load_config

TABLES = [name for name in available("recipes") if compared(name)]


def test_the_page_is_current() -> None:
    assert paper_tables.main(["--check"]) == 0, "run: python benchmarks/paper_tables.py"


@pytest.mark.parametrize("name", TABLES)
def test_each_row_of_a_table_is_a_run(name: str) -> None:
    """All settings exist and are read; the rows that are run are those of the recipe."""
    recipe, methods, settings = split([name])
    made = entries(recipe, methods, settings, None, own=False, trust=False)
    assert [(one.name, one.published) for one in made] == [(row.method, row.published) for row in compared(name)]
    assert all(one.configs[0].data == made[0].configs[0].data for one in made)
    rows = RESULTS / "paper" / name / "rows.yaml"
    if name.endswith("-lite"):
        listed = yaml.safe_load(rows.read_text(encoding="utf-8"))["rows"]
        assert listed == [{"row": folder_of(text), "method": text} for text in methods]


def test_the_tables_of_the_paper_are_there() -> None:
    wanted = {f"l2p-table{number}{end}" for number in (1, 3, 4) for end in ("", "-lite")}
    assert set(TABLES) == wanted
    published = {row.method: row.published for row in compared("l2p-table1")}
    assert published["finetune"] == "33.61 / 86.87"
    assert published["l2p memory.per_class=50"] == "86.31 / 5.83"
    er, slow = (
        entries("l2p-table1", [text], [], None, own=False, trust=False)[0].configs[0]
        for text in ("er memory.per_class=10", "finetune method.share=0.01 train.mask=true")
    )
    assert (er.method["share"], er.train.mask, er.memory.per_class, er.train.optimizer) == (1.0, False, 10, "sgd")
    assert (slow.method["share"], slow.train.mask, slow.train.lr, slow.train.lr_batch) == (0.01, True, 0.01, None)


def test_a_recipe_that_lists_rows_is_a_recipe_like_any_other() -> None:
    assert load_config("l2p-table1").method["name"] == "finetune"
    with pytest.raises(UserError, match="expected a recipe and methods"):
        split(["lite"])
