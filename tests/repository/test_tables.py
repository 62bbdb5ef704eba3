"""The README's tables are those of benchmarks/results, and wrong results make no table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import growth_many
import inputs
import pytest
import speed
import steps
import table

from promptcl.experiments.metrics import task_inference


def write_run(path: Path, seed: int, accuracy: float, **changes: Any) -> None:
    tasks = [{"train_images": 10, "train_seconds": 2.0, "eval_images": 4, "eval_seconds": s} for s in (1.0, 3.0)]
    results = {
        "average_accuracy": accuracy,
        "forgetting": None,
        "learning_accuracy": accuracy + 1,
        "trained_parameters": 12345,
        "device": "cpu",
        "tasks": tasks,
        "config": {"seed": seed, "tasks": 2, **changes},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_run(tmp_path / "main" / "b" / "seed1.json", 1, 80.0)
    write_run(tmp_path / "main" / "b" / "seed2.json", 2, 82.0)
    write_run(tmp_path / "main" / "a" / "seed1.json", 1, 70.0)
    rows = (
        '- {row: b, label: "B", command: "promptcl train b"}\n- {row: a, label: "A", command: "train a", note: "one"}\n'
    )
    (tmp_path / "main" / "rows.yaml").write_text(rows)
    return tmp_path


def test_the_pages_show_the_measured_results() -> None:
    assert table.main(["--check"]) == 0, "run: python benchmarks/table.py"


@pytest.mark.parametrize("name", ["dualprompt", "hide"])
def test_how_often_the_right_task_is_found_is_what_the_sentence_says(name: str) -> None:
    folder = table.RESULTS / "methods"
    (row,) = (row for row in table.read_rows(folder)[0] if row["row"] == name)
    shares = []
    for run in table.load_row(folder / name):
        counts = [one["prompts"] for one in run["statistics"]["test"]]
        shares.append(task_inference(counts))
    assert f"{mean(share for share in shares if share is not None):.0f} %" in row["says"]


def test_the_page_of_speed_shows_the_measured_results() -> None:
    for program in (speed, inputs, growth_many):
        assert program.main(["--check"]) == 0
    assert steps.main("--check") == 0


def test_rows_numbers_notes_and_commands(results: Path) -> None:
    text = "before\n<!-- table: main -->\nold\n<!-- end -->\nafter\n"
    filled = table.fill(text, results)
    lines = filled.splitlines()
    assert lines[:2] == ["before", "<!-- table: main -->"]
    assert lines[4] == "| B | 81.00 ± 1.41 | - | 82.00 ± 1.41 | 2 | 12,345 | 5, 2 (cpu) |"
    assert lines[5] == "| A | 70.00 | - | 71.00 | 1 | 12,345 | 5, 2 (cpu) |"
    assert lines[6:] == [
        "",
        "- A: one",
        "",
        "```sh",
        "promptcl train b  # B",
        "train a  # A",
        "```",
        "<!-- end -->",
        "after",
    ]
    assert table.fill(filled, results) == filled
    assert "old" not in filled


def test_a_comparison_is_sorted_and_names_what_is_still_to_be_measured(tmp_path: Path) -> None:
    more = {"average_incremental_accuracy": 90.0, "stored_bytes": 2_500_000, "seconds": 61.0}
    for name, accuracy in (("ncm", 70.0), ("coda", 80.0)):
        file = tmp_path / "all" / name / "1.json"
        write_run(file, 1, accuracy, method={"name": name})
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    rows = "- {row: ncm, method: ncm, label: N}\n- {row: coda, method: coda method.length=8, label: C, says: Good.}\n"
    (tmp_path / "all" / "rows.yaml").write_text(f"compare: lite $FEW\nrows:\n{rows}- {{row: x, method: x, label: X}}\n")
    lines = table.fill("<!-- table: all -->\n<!-- end -->\n", tmp_path).splitlines()
    assert lines[3] == "| C | 80.00 | 90.00 | - | 1 | 12,345 | 2.50 | 61 | 5, 2 | 2 |"
    assert lines[4].startswith("| N | 70.00 |")
    assert lines[6:9] == ["- C: Good.", "- Not measured yet: X", ""]
    assert lines[10] == "promptcl compare lite $FEW 'coda method.length=8' ncm x"


def test_streams_learned_in_one_pass_have_columns_of_their_own(results: Path) -> None:
    for row, online in (("b", 60.0), ("a", None)):
        for path in (results / "main" / row).glob("*.json"):
            content = {**json.loads(path.read_text()), "online_accuracy": online, "anytime_accuracy": 50.0}
            path.write_text(json.dumps(content))
    lines = table.fill("<!-- table: main -->\n<!-- end -->\n", results).splitlines()
    assert lines[1].startswith("| | last accuracy % | anytime accuracy % | online accuracy % |")
    assert lines[3] == "| B | 81.00 ± 1.41 | 50.00 ± 0.00 | 60.00 ± 0.00 | 2 | 12,345 | 5 (cpu) |"
    assert lines[4] == "| A | 70.00 | 50.00 | - | 1 | 12,345 | 5 (cpu) |"


@pytest.mark.parametrize(
    ("path", "seed", "changes", "sentence"),
    [
        ("main/b/seed3.json", 3, {"tasks": 5}, "differ in more than the seed"),
        ("main/b/seed3.json", 2, {}, "seed 2 is there twice"),
        ("main/c/seed1.json", 1, {}, "the folders are"),
    ],
)
def test_wrong_results_are_refused(results: Path, path: str, seed: int, changes: dict[str, Any], sentence: str) -> None:
    write_run(results / path, seed, 50.0, **changes)
    with pytest.raises(table.TableError, match=sentence):
        table.fill("<!-- table: main -->\n<!-- end -->\n", results)


def test_a_table_nobody_shows_is_refused(results: Path) -> None:
    with pytest.raises(table.TableError, match="tables marked in the text: \\[\\]"):
        table.fill("no markers\n", results)


def test_no_table_is_empty() -> None:
    """What the pages promise to show is there."""
    for page in (table.ROOT / "README.md", *(table.ROOT / "docs").glob("*.md")):
        for empty in re.findall(r"<!-- ([\w: .-]+) -->\n<!-- end -->", page.read_text(encoding="utf-8")):
            raise AssertionError(f"{page.name}: nothing between <!-- {empty} --> and its end")
