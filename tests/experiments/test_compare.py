"""promptcl compare: several methods on one stream, as users run it."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, TINY_VIT, good, refused, start, written

from promptcl.cli.compare import entries, folder_of, split
from promptcl.cli.options import split_arguments
from promptcl.errors import UserError
from promptcl.recipes.load import load_config, of_another

FEW = [*TINY_VIT, "tasks=2", "data.train_per_class=4", "data.test_per_class=4", "train.epochs=1"]


def test_words_become_a_recipe_methods_and_settings_of_all() -> None:
    words = ["lite", "ncm", "tasks=2", "coda train.lr=0.01", "data.root=my images"]
    assert split(words) == ("lite", ["ncm", "coda train.lr=0.01"], ["tasks=2", "data.root=my images"])
    for wrong, message in [
        (["lite"], "expected a recipe and methods"),
        (["lite", "coda", "method.length=8"], r"'coda method\.length=8'"),
        (["lite", "coda", "ncm", "coda"], "coda is there twice"),
        (["lite", "coda", ""], "'': expected a method"),
        (["lite", "coda data.root='my"], "expected a method, and settings in matching quotes"),
    ]:
        with pytest.raises(UserError, match=message):
            split(wrong)


def test_long_methods_that_begin_alike_have_folders_of_their_own() -> None:
    long = "oneprompt method.head_init=zero method.prompt_lr=0.005 method.prompt_init=normal method.init_scale=0.02"
    names = [folder_of(text) for text in (long, f"{long} joint=true", f"{long} train.lr=0.01")]
    assert len(set(names)) == 3
    assert all(len(name) <= 100 for name in names)
    assert split(["lite", long, f"{long} joint=true"])[1] == [long, f"{long} joint=true"]


def test_a_method_has_its_recipes_options_and_the_training_of_the_common_recipe() -> None:
    base = load_config("lite", ["train.epochs=2"])
    coda = of_another(base, "coda", ["method.head_init=zero"])
    assert (coda.backbone, coda.data, coda.train) == (base.backbone, base.data, base.train)
    assert coda.method == load_config("coda", ["method.head_init=zero"]).method
    assert of_another(base, "l2p_prefix", []).method == load_config("l2p-prefix").method
    assert of_another(base, "l2p_ridge", []).method == base.method  # the one of the recipe keeps its options
    assert of_another(base, "ncm", []).train == base.train  # passed over
    own = of_another(base, "coda", [], own=True)
    assert own.train == load_config("coda").train
    assert own.data == base.data
    with pytest.raises(UserError, match=r"train\.lr=1\.0 is not read with method\.name=ncm"):
        of_another(base, "ncm", ["train.lr=1"])


def test_each_method_runs_with_each_seed() -> None:
    made = entries("lite", ["ncm", "coda train.lr=0.01"], ["tasks=5"], "3,1", own=False, trust=False)
    assert [entry.folder for entry in made] == ["ncm", "coda-train.lr=0.01"]
    assert [[config.seed for config in entry.configs] for entry in made] == [[3, 1], [3, 1]]
    assert {config.tasks for entry in made for config in entry.configs} == {5}
    assert [config.train.lr for config in made[1].configs] == [0.01, 0.01]


def test_a_comparison_is_no_method() -> None:
    with pytest.raises(
        UserError, match="l2p-table1-lite is a comparison of several methods, and no method; write prom"
    ):
        entries("demo", ["ncm", "l2p-table1-lite"], [], None, own=False, trust=False)


def test_a_setting_of_all_is_refused_where_no_method_reads_it(tmp_path: Path) -> None:
    made = entries("lite", ["er", "ncm"], ["memory.per_class=20", "seed=7"], None, own=False, trust=False)
    assert [entry.configs[0].memory.per_class for entry in made] == [20, 20]  # although that of the recipe reads none
    (tmp_path / "mine.yaml").write_text("method: ncm\nmemory: {per_class: 20}\n")
    (er,) = entries(str(tmp_path / "mine.yaml"), ["er"], ["train.epochs=3"], None, own=True, trust=False)
    assert (er.configs[0].memory.per_class, er.configs[0].train.epochs) == (20, 3)  # and not the epochs of its recipe
    entries("lite", ["ncm", "ridge"], ["train.epochs=1"], None, own=False, trust=False)  # of a line for many methods
    for setting, message in [
        ("memory.per_class=20", r"memory\.per_class=20: none of the methods \(ncm, ridge\) reads it; leave it out"),
        ("gaussian.sigma=3", r"gaussian\.sigma=3\.0 is not read with scenario=class"),
    ]:
        with pytest.raises(UserError, match=message):
            entries("lite", ["ncm", "ridge"], [setting], None, own=False, trust=False)


@pytest.mark.slow
def test_a_method_that_cannot_be_made_is_refused_before_any_is_run(tmp_path: Path) -> None:
    for wrong, message in [
        ("coda method.layers=[99]", "coda method.layers=[99]: the method's options name layer 99"),
        ("ridge tasks=11", "tasks=11"),
        ("ridge data.root=x.npz data.name=npz", "x.npz"),
        ("ridge backbone.name=none", "none"),
    ]:
        assert message in refused("compare", "demo", "ncm", wrong, *FEW[:-1], cwd=tmp_path)


@pytest.mark.slow
def test_a_bad_image_of_one_method_stops_no_other(folders: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(folders / "second", tmp_path / "set" / part)
    min((tmp_path / "set" / "train").rglob("*.png")).write_bytes(b"no image")
    words = ["ncm", "ridge data.name=folder data.root=set", "ncm seed=3"]
    result = start("compare", "demo", *words, *FEW[:-1], "--out", "o", "--quiet", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    rows = json.loads((tmp_path / "o" / "compare.json").read_text())
    assert ["failed" in row for row in rows] == [False, True, False]
    alone = start("compare", "demo", words[1], *FEW[:-1], "--out", "p", "--quiet", cwd=tmp_path)
    assert alone.returncode == 2
    assert not list((tmp_path / "p").rglob("*"))


def test_bad_settings_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    assert "did you mean method.length" in refused("compare", "demo", "ncm", "coda method.lenght=8", cwd=tmp_path)
    assert "cuda1" in refused("compare", "demo", "ncm", "cuda1", cwd=tmp_path)


def test_a_quote_without_its_end_in_a_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('compare:\n  - {method: ncm, also: "data.root=\'my"}\n')
    said = refused("compare", str(tmp_path / "mine.yaml"), cwd=tmp_path)
    assert "expected a method, and settings in matching quotes" in said


def test_a_setting_longer_than_the_name_of_a_file_is_a_setting(store: Path, folders: Path, tmp_path: Path) -> None:
    long = f"tasks=[{','.join(['1'] * 141)}]"
    assert split(["lite", "ncm", long]) == ("lite", ["ncm"], [long])
    assert split_arguments([long]) == ("demo", [long])
    with pytest.raises(UserError, match="not one of the methods"):
        of_another(load_config("lite"), 300 * "n", [])
    assert f"{long}: a finished run has no settings to change" in refused("report", tmp_path, long, cwd=tmp_path)
    image = next((folders / "test").rglob("*.png"))
    assert "is not read where nothing is learned" in refused("predict", store, image, long, cwd=tmp_path)


@pytest.mark.slow
def test_a_table_a_file_and_a_page_and_a_failure_that_stops_no_other(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["demo", "ncm", "linear train.optimizer=sgd train.lr=1e38", "apt", "linear"]
    result = start("compare", *words, *FEW, "--out", "o", "--quiet", cwd=tmp_path)
    assert result.returncode == 2
    assert "failed: linear train.optimizer=sgd train.lr=1e38; mend the settings" in result.stderr
    rows = json.loads((tmp_path / "o" / "compare.json").read_text())
    assert [row["method"] for row in rows] == words[1:]
    assert "failed: the loss became" in result.stdout
    assert (rows[0]["trained_parameters"], rows[0]["passes"], rows[2]["passes"]) == (0, "1 pass", "1 pass")
    found = json.loads((tmp_path / "o" / "apt" / "seed42" / "results.json").read_text())
    assert rows[2]["last_accuracy"] == {"mean": found["average_accuracy"], "std": None}
    assert rows[2]["average_incremental_accuracy"]["mean"] == found["average_incremental_accuracy"]
    assert rows[2]["stored_bytes"] == found["stored_bytes"] > 0
    page = (tmp_path / "o" / "report.html").read_text()
    assert "A-bar" in page
    assert "accuracy-against-seconds" in page
    before = (tmp_path / "o" / "compare.json").read_text()
    result = start("compare", *words, *FEW, "seed=42", "eval.batch_size=3", "--out", "o", "--quiet", cwd=tmp_path)
    assert "a run with other settings is there" in result.stderr
    assert (tmp_path / "o" / "compare.json").read_text() == before


@pytest.mark.slow
def test_interrupted_it_says_the_line_that_goes_on_and_keeps_what_is_finished(tmp_path: Path) -> None:
    words = ["demo", "ncm", "apt train.epochs=20", *FEW]
    process = subprocess.Popen(
        [sys.executable, "-m", "promptcl", "compare", *words, "--quiet"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    out = tmp_path / "runs" / "compare-demo"
    while process.poll() is None and not list(out.glob("apt*/seed42/learner/learner.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130, said
    (line,) = [line for line in said if line.startswith("go on with: promptcl compare demo ncm 'apt train.epochs=20'")]
    assert "--quiet" in line
    kept = written(out / "ncm" / "seed42" / "results.json")
    begun = written(out / "apt-train.epochs=20" / "seed42" / "config.yaml")
    again = start("compare", *words, "--quiet", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert written(out / "ncm" / "seed42" / "results.json") == kept
    assert written(out / "apt-train.epochs=20" / "seed42" / "config.yaml") == begun  # it went on


def test_methods_are_listed_with_what_they_learn_and_their_passes() -> None:
    lines = {line.split()[0]: line for line in good("list", "methods").splitlines()}
    assert "components with keys and attention, head; 2 passes" in lines["coda"]
    assert "arXiv 2211.13218" in lines["coda"]
    assert all("pass" in line for line in lines.values())
