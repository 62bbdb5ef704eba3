"""Results that a stranger made: nothing of them leads out of the page's folder, and what no run measures is refused."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import merged
from markupsafe import Markup
from pages import Elements

from promptcl.errors import UserError
from promptcl.reports import page
from promptcl.reports.report import write
from promptcl.reports.results import read

HUGE = 10**400
TAG = '"></svg><h1>\u202eX<meta http-equiv=refresh content=0;url=data:,x><form><script>alert(1)</script><i x="'
GOOD: dict[str, Any] = {
    "average_accuracy": 50.0,
    "forgetting": 5.0,
    "learning_accuracy": 55.0,
    "accuracy_matrix": [[60.0, None], [50.0, 50.0]],
    "trained_parameters": 10,
    "prompt_selections": {"train": [[5, 3], [2, 6]], "test": [[5, 3], [2, 6]]},
    "tasks": [
        {"task": 0, "name": "a", "average_accuracy": 60.0},
        {"task": 1, "name": "b", "average_accuracy": 50.0, "forgetting": 5.0},
    ],
    "seconds": 3.0,
    "backbone": {"name": "x"},
    "device": "cpu",
    "config": {"seed": 1, "method": {"name": "l2p"}},
    "versions": {"torch": "1"},
    "git_commit": None,
}


def put(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(merged(GOOD, changes)))
    return folder


def deep(levels: int) -> Any:
    return {"x": deep(levels - 1)} if levels else 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"config": {"seed": seed}}, "seed is no whole") for seed in ("/../x", '"><b>', -1, 2**70, [1], True, 0.5)],
        ({"config": {"a": deep(100)}}, "more than 20 levels"),
        ({"accuracy_matrix": [[1.0], [1.0, 2.0]]}, "rows of one length"),
        ({"accuracy_matrix": [[None, None], [None, None]]}, "no accuracy was measured"),
        ({"accuracy_matrix": [[1e300, None], [1.0, 1.0]]}, "less than or equal to 100"),
        ({"accuracy_matrix": [[0.0] * 1001] * 1000}, "more than 1,000,000 accuracies"),
        ({"accuracy_matrix": [[0.0]] * 10_001}, "at most 10000 items"),
        ({"average_accuracy": float("inf")}, "finite number"),
        ({"average_accuracy": HUGE}, "valid number"),
        ({"trained_parameters": HUGE}, "less than or equal"),
        ({"trained_parameters": -5}, "greater than or equal to 0"),
        ({"seconds": -1.0}, "greater than or equal to 0"),
        ({"tasks": [{"task": 10**9, "name": "a", "average_accuracy": 1.0}]}, "less than or equal to 1000000"),
        ({"tasks": [{"task": 0, "name": "a", "average_accuracy": -1e9}]}, "greater than or equal to -100"),
        ({"prompt_selections": {"train": [[HUGE, 1]]}}, "less than or equal"),
        ({"prompt_selections": {"train": [[1], [0] * 2000, *[None] * 998]}}, "tasks times prompts"),
        (
            {"schedule": {"steps": 1, "sigma": 1.0, "peaks": [0.0] * 2000, "expected_classes": [1.0] * 1000}
             | {"included": [[0]] * 1000}},
            "micro-tasks times classes",
        ),
        ({"schedule": {"steps": HUGE, "sigma": 1.0, "peaks": [0.0], "expected_classes": [1.0], "included": [[0]]}},
         "less than or equal"),
        ({"schedule": {"images": [[1, 2]], "task_of_class": [0, 1], "blurry": []}}, "that there is not"),
        ({"schedule": {"images": [[1], [1, 2]], "task_of_class": [0, 1], "blurry": []}}, "differ in length"),
        ({"schedule": {"images": [[0] * 2000] * 1000, "task_of_class": [0] * 2000, "blurry": []}},
         "tasks times classes"),
    ],
)  # fmt: skip
def test_what_no_run_measures_is_a_sentence(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"not the results of a run, .*{re.escape(reason)}"):
        read([put(tmp_path / "run", **changes)])


def test_too_much_is_a_sentence(tmp_path: Path) -> None:
    file = put(tmp_path) / "results.json"
    file.write_text("[" + "[]," * 3_000_001)
    with pytest.raises(UserError, match="more than 3,000,000 values"):
        read([tmp_path])
    with file.open("wb") as opened:
        opened.truncate(2**27)
    with pytest.raises(OSError, match="larger than 64 MiB"):
        read([tmp_path])
    for number in range(1001):
        (tmp_path / "many" / f"seed{number}").mkdir(parents=True)
        (tmp_path / "many" / f"seed{number}" / "results.json").touch()
    with pytest.raises(UserError, match="1,001 runs are too many"):
        read([tmp_path / "many"])


def test_texts_of_strangers_stay_texts(tmp_path: Path) -> None:
    tasks = [{"task": t, "name": TAG + str(t), "average_accuracy": 60.0, "forgetting": 1.0} for t in range(2)]
    texts: dict[str, Any] = {"tasks": tasks, "test_sets": [TAG, TAG + "1"], "warnings": [TAG, "\x00"]}
    texts |= {
        "device": TAG,
        "backbone": {"name": TAG, "sha256": [TAG, "\udcff"]},
        "versions": {TAG: TAG},
        "git_commit": TAG,
    }
    a = put(tmp_path / "runs" / "seed1", **texts, config={"seed": 1, TAG: TAG, "method": {"name": TAG}})
    b = put(tmp_path / os.fsdecode(b'<h1>\xff"'), config={"seed": 2, "method": {"name": TAG}})
    write([a, b], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search("<h1>(?!promptcl report)|<script|<form|<i |\u202e|\x00", text)
    assert text.count("<meta") == 4
    assert "form-action 'none'" in text
    assert all(re.fullmatch("[A-Za-z0-9-]+", name) for name in Elements(text).figures)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("page")) == [
        "page-figures",
        "page.html",
    ]


def test_a_raw_text_in_a_page_keeps_it_from_being_written() -> None:
    with pytest.raises(UserError, match="the page was not written: there is a raw <meta>"):
        page.render("page.html.j2", title=Markup(TAG))


@pytest.mark.slow
def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never through links: those in the place of a file are replaced."""
    victim, out = tmp_path / "victim", tmp_path / "run" / "report.html"
    victim.write_text("precious")
    run = put(tmp_path / "run")
    write([run], out)
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    sync, left = os.fsync, 3

    def broken(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, "Input/output error")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            write([put(run, average_accuracy=1.0)], out)
    assert {path: path.read_bytes() for path in run.rglob("*.*") if path.name != "results.json"} == {
        path: data for path, data in before.items() if path.name != "results.json"
    }
    for file in (out, run / "report-figures" / "average-accuracy.png"):
        file.unlink()
        file.symlink_to(victim)
    write([run], out)
    assert victim.read_text() == "precious"
    assert not out.is_symlink()
    (run / "report-figures").rename(tmp_path / "elsewhere")
    (run / "report-figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link, and figures belong into a folder"):
        write([run], out)
