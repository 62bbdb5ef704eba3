"""docs/methods has a current page for each method, with what enters the blocks of a ViT."""

from __future__ import annotations

import method_pages as pages
import pytest

from promptcl.recipes import available


def test_each_method_has_a_page() -> None:
    assert {file.stem for file in pages.PAGES.glob("*.md")} == set(available("methods"))


@pytest.mark.slow
def test_the_pages_are_current() -> None:
    assert pages.main(["--check"]) == 0, "run: python benchmarks/method_pages.py"


def test_a_drawing_shows_what_was_inserted() -> None:
    blocks = "blocks 0-4   4 rows of keys and values in front\n        block 5      as pre-trained"
    assert pages.drawing("coda") == f"pass 1  blocks 0-5   as pre-trained\npass 2  {blocks}"
    assert pages.drawing("apt") == "blocks 0-5   changed: k, v"


def test_rows_of_the_papers_tables_stand_on_the_pages() -> None:
    tables = {name: {table for table, *_ in rows} for name, rows in pages.measured().items()}
    assert {"l2p-table1-lite", "l2p-table3-lite", "l2p-table4-lite"} <= tables["ewc"]


def test_the_command_of_a_recipe_is_code() -> None:
    assert pages.as_code("Command: promptcl train x") == "Command: `promptcl train x`."
    assert pages.as_code("Command: promptcl train    (or: y)") == "Command: `promptcl train` (or: y)."
