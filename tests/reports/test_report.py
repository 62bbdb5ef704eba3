"""The report as users get it: from real runs, one page without network that a browser draws, one line for bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import good, make_config, refused, run_quietly, start, write_folders
from pages import Elements, look, ticks
from PIL import Image

from promptcl.data.splits import load_split
from promptcl.errors import UserError
from promptcl.experiments.metrics import speed
from promptcl.reports.page import save
from promptcl.reports.report import write
from promptcl.reports.results import read

FIGURES = {"average-accuracy", "average-accuracy-last", "forgetting", "forgetting-last", "a-accuracy", "b-accuracy"}
FIGURES |= {f"a-prompts-seed{seed}-{part}" for seed in (1, 2) for part in ("train", "test")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of L2P and one run of ncm."""
    folder = tmp_path_factory.mktemp("runs")
    few = {"train_per_class": 3, "test_per_class": 2}
    for seed in (1, 2):
        run_quietly(make_config(tasks=5, seed=seed, data=few), folder / f"l2p-seed{seed}")
    run_quietly(make_config(tasks=5, data=few, method={"name": "ncm"}), folder / "näh <b> $m$")
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    page = runs / "page" / "r.html"
    assert write(sorted(runs.glob("*")), page) == len(FIGURES)
    return page


@pytest.mark.slow
def test_page_stands_alone_with_every_figure_described(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    assert set(elements.figures) == FIGURES
    assert len(elements.ids) == len(set(elements.ids))
    inside = {f"#{name}" for name in elements.ids}
    assert all(a in inside or a.startswith("data:image/png;base64,") for a in elements.addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert all(f"#{name}" in inside for name in re.findall(r"url\(#([^)]+)\)", text))
    assert len(elements.alts) == len(FIGURES)
    assert all(re.search(r"\d", alt) for alt in elements.alts)
    assert elements.figures[:2] == ["a-accuracy", "b-accuracy"]
    assert "<b>" not in text


@pytest.mark.slow
def test_numbers_are_those_of_the_results(runs: Path, page: Path) -> None:
    l2p = [json.loads((runs / f"l2p-seed{seed}" / "results.json").read_text()) for seed in (1, 2)]
    values = [one["average_accuracy"] for one in l2p]
    rows = Elements(page.read_text(encoding="utf-8")).tables["results"]
    assert rows[1][:2] == ["A l2p", f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"]
    assert rows[1][5:7] == ["2", f"{4 * 2 * 64 + 4 * 64 + 10 * 65:,}"]
    rates = [speed([one["tasks"] for one in l2p], kind) for kind in ("train", "eval")]
    assert ", ".join(f"{rate or 0:,.0f}" for rate in rates) in rows[1]
    assert rows[2][0] == "B näh <b> $m$"
    assert rows[2][5:7] == ["1", "0"]
    group = read([runs / "l2p-seed1", runs / "l2p-seed2"])[0]
    matrices = [[[np.nan if v is None else v for v in row] for row in one["accuracy_matrix"]] for one in l2p]
    np.testing.assert_allclose(group.matrix(), np.mean(matrices, 0))
    np.testing.assert_allclose(group.curve("average_accuracy")[:, -1], values)
    differences = Elements(page.read_text(encoding="utf-8")).tables["differences"]
    assert differences[1:] == [["method.name", "l2p", "ncm"]]


@pytest.mark.slow
def test_every_figure_is_a_png_too(page: Path) -> None:
    found = {path.stem: path for path in page.with_name("r-figures").iterdir()}
    assert set(found) == FIGURES
    for path in found.values():
        with Image.open(path) as image:
            assert image.width == 810
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


@pytest.mark.slow
def test_browser_draws_every_figure(page: Path, tmp_path: Path) -> None:
    hidden = {name for name in FIGURES if "seed2" in name}  # closed: the other seeds
    for width in (400, 800, 1400):
        seen = look(page, width, tmp_path)
        assert set(seen.figures) == FIGURES
        assert not any(seen.faults(seen.figures.keys() - hidden)), width
        assert not seen.wide


@pytest.mark.slow
def test_command_needs_no_torch_and_says_what_it_wrote(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "l2p-seed1", tmp_path / "one")
    result = start("report", "one", cwd=tmp_path)
    assert result.stdout == "one/report.html: 5 figures, also as PNG in one/report-figures\n", result
    assert result.stderr == ""
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert start("report", "one", "two/results.json", cwd=tmp_path).returncode == 0
    text = (tmp_path / "report.html").read_text()
    assert "the same settings and seeds were run more than once" in text
    assert f"A = {tmp_path / 'one'}<br>B = {tmp_path / 'two'}<br>" in text
    code = "import sys, promptcl.reports.report\nassert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[: len(text) // 2], "not the results of a run"),
        (lambda text: "", "not the results of a run"),
        (lambda text: "[1, 2]", "not the results of a run"),
        (lambda text: text.replace('"accuracy_matrix"', '"matrix"'), "accuracy_matrix: Field required"),
        (lambda text: text.replace('"average_accuracy": ', '"average_accuracy": "new" '), "not the results of a run"),
        (lambda text: re.sub(r'("accuracy_matrix": \[\s+\[)', r"\1 1,", text), "rows of one length"),
        (lambda text: re.sub(r'"forgetting": [\d.-]+', '"forgetting": NaN', text), "forgetting"),
    ],
)
def test_bad_results_are_refused(runs: Path, tmp_path: Path, change: Any, expected: str) -> None:
    text = (runs / "l2p-seed1" / "results.json").read_text()
    (tmp_path / "results.json").write_text(change(text))
    with pytest.raises(UserError, match=expected):
        write([tmp_path], tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_what_is_no_run_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no results\.json"):
        write([tmp_path], tmp_path / "r.html")
    with pytest.raises(UserError, match=r"write e\.g\. --out report\.html"):
        write([runs / "l2p-seed1"], tmp_path / "r.pdf")
    (tmp_path / "results.json").write_text("{")
    assert "not the results of a run" in refused("report", ".", cwd=tmp_path)
    assert "does not exist" in refused("report", "absent", cwd=tmp_path)


@pytest.mark.slow
def test_fields_of_later_versions_are_ignored(runs: Path, tmp_path: Path) -> None:
    results = json.loads((runs / "l2p-seed1" / "results.json").read_text())
    results["from_the_future"] = {"a": [1]}
    results["tasks"][0]["also"] = None
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert write([tmp_path], tmp_path / "r.html") == 5


@pytest.mark.slow
def test_a_pool_of_one_prompt_has_no_figure_of_prompts(runs: Path, tmp_path: Path) -> None:
    results = json.loads((runs / "l2p-seed1" / "results.json").read_text())
    for rows in results["prompt_selections"].values():
        rows[:] = [row and [sum(row)] for row in rows]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert write([tmp_path], tmp_path / "r.html") == 3


@pytest.mark.slow
def test_a_run_of_all_tasks_at_once(tmp_path: Path) -> None:
    """One task learned, five test sets: the accuracy matrix has one row, the choices of each test set theirs."""
    few = {"train_per_class": 3, "test_per_class": 2}
    results = run_quietly(make_config(joint=True, tasks=5, data=few), tmp_path)
    (group,) = read([tmp_path])
    assert group.whole
    assert group.runs[0].forgetting is None
    found = group.runs[0].prompt_selections
    assert found is not None
    assert found.model_dump() == results["prompt_selections"]
    assert write([tmp_path], tmp_path / "r.html") == 3  # one point is no curve
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    drawn = {"a-accuracy", "a-prompts-train", "a-prompts-test"}
    assert set(Elements(text).figures) == drawn
    assert f"{results['average_accuracy']:.2f}" in text


@pytest.mark.slow
def test_choices_that_are_known_at_test_only(tmp_path: Path) -> None:
    """DualPrompt trains the expert of the task and chooses one at test."""
    few = {"train_per_class": 3, "test_per_class": 2}
    results = run_quietly(make_config(tasks=5, data=few, method={"name": "dualprompt"}), tmp_path)
    assert results["prompt_selections"]["train"] == [None] * 5
    assert [sum(row) for row in results["prompt_selections"]["test"]] == [4] * 5
    assert results["pool"]["collapsed"] is None
    assert write([tmp_path], tmp_path / "r.html") == 4
    figures = Elements((tmp_path / "r.html").read_text(encoding="utf-8")).figures
    assert "a-prompts-test" in figures
    assert "a-prompts-train" not in figures


@pytest.mark.slow
def test_a_pool_that_grows_and_says_no_cosine(runs: Path, tmp_path: Path) -> None:
    """Rows of several lengths, as of a method with a prompt a task; not every method counts a mean cosine."""
    results = json.loads((runs / "l2p-seed1" / "results.json").read_text())
    results["prompt_selections"]["train"] = [[6] + [0] * task for task in range(5)]
    results["prompt_selections"]["train"][4] = [0, 0, 0, 3, 3]
    for entry in results["pool"]["train"]:
        entry["cosine"] = None
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert write([tmp_path], tmp_path / "r.html") == 5
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "3 of 5 prompts are ever selected" in text
    assert text.count("Mean cosine of queries") == 2 * 1  # below the figure of the tests and in its description


@pytest.mark.slow
def test_stream_without_tasks(tmp_path: Path) -> None:
    gaussian = {"micro_tasks": 12, "steps": 2, "sigma": 3.0, "evaluate_every": 4}
    config = make_config(scenario="gaussian", train={"mask_classes": "batch"}, gaussian=gaussian)
    results = run_quietly(config, tmp_path)
    assert write([tmp_path], tmp_path / "r.html") == 5
    text = (tmp_path / "r.html").read_text()
    curves = {"average-accuracy", "seen-accuracy"}
    assert set(Elements(text).figures) == {*curves, "a-schedule", "a-prompts-train", "a-prompts-test"}
    drawn = np.mean([len(classes) for classes in results["schedule"]["included"]])
    assert f"micro-tasks: {drawn:.1f} on average" in text
    cosines = [entry["cosine"] for entry in results["pool"]["train"]]
    assert f"{cosines[0]:.2f} for the first, {cosines[-1]:.2f} for the last" in text
    assert text.count("Warning: ") == len(results["warnings"])
    group = read([tmp_path])[0]
    assert [task.task + 1 for task in group.runs[0].tasks] == [4, 8, 12]


@pytest.mark.slow
def test_stream_of_tasks_that_run_into_one_another(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"scenario": "blurry", "tasks": 2, "method": {"name": "ncm"}}
    changes["blurry"] = {"blur": 0.5, "evaluate_every": 4}
    results = run_quietly(make_config(**changes, online=True), tmp_path / "run")
    run_quietly(make_config(**changes), tmp_path / "other")
    assert write([tmp_path / "run"], tmp_path / "r.html") == 4
    text = (tmp_path / "r.html").read_text()
    elements = Elements(text)
    assert set(elements.figures) == {"average-accuracy", "seen-accuracy", "online-accuracy", "a-classes"}
    images, task = np.array(results["schedule"]["images"]), results["schedule"]["task_of_class"]
    away = int(images.sum() - images[task, np.arange(10)].sum())
    assert away > 0
    assert f"5 classes are in one task each, 5 are blurry; {away} of 80 images are in another task" in text
    assert f"{results['online_accuracy']:.2f}" in text
    assert f"{results['anytime_accuracy']:.2f}" in text
    write([tmp_path / "run", tmp_path / "other"], tmp_path / "both.html")
    assert ">online accuracy %<" in (tmp_path / "both.html").read_text()


@pytest.mark.slow
def test_domains_have_names_and_axes_are_whole(tmp_path: Path) -> None:
    digits = load_split(make_config(data={"train_per_class": 20}).data).train.of_classes(["3", "7"])
    for domain, first in (("dark", 0), ("light <b>", 10)):
        chosen = [i for k in (0, 1) for i in np.flatnonzero(digits.labels == k)[first : first + 10]]
        write_folders(digits.select(chosen), tmp_path / "data" / domain)
    data = {"name": "domains", "root": str(tmp_path / "data")}
    results = run_quietly(make_config(scenario="domain", data=data, method={"name": "ncm"}), tmp_path / "run")
    assert results["test_sets"] == ["dark", "light <b>"]
    write([tmp_path / "run"], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    tables = Elements(text).by_figure
    assert tables["a-accuracy"][0] == ["after task", "dark", "light <b>"]
    assert [row[0] for row in tables["a-accuracy"][1:]] == ["dark", "light <b>"]
    assert ticks(text, "average-accuracy") >= {"0", "100", "dark", "light <b>"}
    old = json.loads((tmp_path / "run" / "results.json").read_text())
    del old["test_sets"]  # as an older promptcl wrote it
    (tmp_path / "run" / "results.json").write_text(json.dumps(old))
    write([tmp_path / "run"], tmp_path / "r.html")
    assert Elements((tmp_path / "r.html").read_text(encoding="utf-8")).by_figure == tables


@pytest.mark.slow
def test_zoom_shortens_axes_and_values_stand_beside_the_bars(runs: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in runs.glob("*") if (path / "results.json").exists())
    seen = []
    for zoom in ([], ["--zoom"]):
        good("report", *paths, "--out", tmp_path / "r.html", *zoom)
        seen.append((tmp_path / "r.html").read_text(encoding="utf-8"))
    for name in ("average-accuracy", "average-accuracy-last"):
        assert {"0", "20", "40", "60", "80", "100"} <= ticks(seen[0], name)
        assert not {"0", "20", "40", "60", "80", "100"} <= ticks(seen[1], name)
    rows = Elements(seen[0]).tables["results"]
    assert {rows[1][1], rows[2][1]} <= ticks(seen[0], "average-accuracy-last")


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    victim, page = tmp_path / "victim", tmp_path / "page.html"
    victim.write_text("precious")
    page.symlink_to(victim)
    assert save(page, "new \udcff", []) == 0
    assert victim.read_text() == "precious"
    assert not page.is_symlink()
    assert page.read_text() == "new \\udcff"
    (tmp_path / "page-figures").rmdir()
    (tmp_path / "page-figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="page-figures is a link"):
        save(page, "newer", [])
    assert page.read_text() == "new \\udcff"
    assert not (tmp_path / "elsewhere").exists()
