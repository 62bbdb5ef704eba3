"""The page about a learner: what it says of history and answers, that it stands alone, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import encoded, good, make_config, refused
from pages import Elements, look, ticks
from PIL import Image

from promptcl.backbone import Backbone
from promptcl.backbone.weights import EMBEDDED
from promptcl.data import labelled
from promptcl.data.images import ImageSet
from promptcl.learner import Calibration, Learner
from promptcl.reports.answers import Answers
from promptcl.reports.learner import LEFT_OUT, About, left_out, measured, write_about
from promptcl.store import TaskRecord

HOSTILE = '<script>alert("x")</script> & a name that does not end'


@pytest.fixture(scope="module")
def strangers(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of `folders`, and one more class that the learner never learned."""
    folder = tmp_path_factory.mktemp("strangers") / "test"
    shutil.copytree(folders / "test", folder)
    (folder / HOSTILE.replace("/", "|")).mkdir()
    for number in range(3):
        image = Image.new("RGB", (300, 200), (90 * number, 40, 200))
        (folder / HOSTILE.replace("/", "|") / f"<b>{number}.png").write_bytes(encoded(image))
    return folder


@pytest.fixture(scope="module")
def page(store: Path, strangers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about `store`, measured on `strangers`."""
    page = tmp_path_factory.mktemp("page") / "shop.html"
    good("report", store, "--images", strangers, "--out", page, "device=cpu")
    return page


def facts(text: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))


@pytest.mark.slow
def test_without_images_it_asks_about_those_it_learned(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "shop")
    before = {path.name for path in (tmp_path / "shop").iterdir()}
    size = json.loads(good("info", tmp_path / "shop", "--json"))["bytes"]
    said = good("report", tmp_path / "shop")
    page = tmp_path / "shop" / "report.html"
    assert said == f"{page}: 6 figures, also as PNG in {tmp_path / 'shop' / 'report-figures'}\n"
    assert {path.name for path in (tmp_path / "shop").iterdir()} == before | {"report.html", "report-figures"}
    assert Learner.load(tmp_path / "shop").classes == ["0", "1", "2", "3", "4"]
    assert json.loads(good("info", tmp_path / "shop", "--json"))["bytes"] == size
    text = page.read_text(encoding="utf-8")
    rows = Elements(text).by_figure
    assert [[row[0], *row[2:5]] for row in rows["history"][1:]] == [
        ["first", "3", "3", "60"],
        ["second", "2", "5", "40"],
    ]
    assert rows["images"][1:] == [[str(digit), "20"] for digit in range(5)]
    assert facts(text)["images learned"] == "100"
    assert f"promptcl report {tmp_path / 'shop'} --images FOLDER" in text
    learner = Learner.load(store)
    held, found = learner.calibration, learner.left_out()
    assert found is not None
    assert held.threshold is not None
    assert held.images == len(found.labels_N) == 100
    assert "calibrated on 100 images" in text
    assert f"less familiar than {held.threshold:.2f}" in text
    right = (found.logits_NK.argmax(1) == found.labels_N).sum().item()
    assert facts(text)["accuracy"] == f"{right:.1f} %"
    assert sum(int(row[1]) for row in rows["classes"][1:]) == right
    assert sum(int(row[1]) for row in rows["unknown"][1:]) == int((found.familiarity_N < held.threshold).sum())
    assert f"Measured on {LEFT_OUT}" in text
    assert "from these same answers" in text
    assert "<img" not in text


@pytest.mark.slow
def test_without_images_and_weights_it_tells_the_history(folders: Path, tmp_path: Path) -> None:
    """And says why not more."""
    shop, weights = tmp_path / "shop", tmp_path / "vit.safetensors"
    shutil.copy(EMBEDDED, weights)
    good("learn", shop, folders / "second", "--quiet", "--recipe", "grow-demo", f"backbone.weights={weights}")
    weights.unlink()
    assert ": 2 figures" in good("report", shop)
    text = (shop / "report.html").read_text(encoding="utf-8")
    assert f"there is no file {weights}" in text
    assert f"promptcl report {shop} --images FOLDER" in text
    assert refused("report", shop, "--images", folders / "test", cwd=tmp_path)


def test_the_only_image_of_a_class_is_not_asked_about(backbone: Backbone, folders: Path, tmp_path: Path) -> None:
    config = make_config(method={"name": "ridge", "rows": 100})
    learner = Learner(config, backbone)
    images = labelled(folders / "first").select([0, 1, 2, 20, 40, 41])
    learner.learn(images)
    answers, remark = left_out(learner)
    assert answers is not None
    assert answers.labels.tolist() == [0, 0, 0, 2, 2]
    assert answers.threshold is None
    assert remark.startswith("Not counted: 1, each the only image of its class.")
    about = About(tmp_path, learner.classes, learner.history, learner.calibration, config, {})
    assert write_about(about, tmp_path / "r.html", answers, remark) == 5
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert remark in text
    assert "too few of them were answered right" in text
    single = Learner(config, backbone)
    single.learn(images.select([0, 3, 4]))
    assert single.calibration == Calibration()
    assert left_out(single) == (None, "Each image it learned is the only one of its class.")


def test_a_method_that_cannot_leave_out_images_is_not_asked(backbone: Backbone, folders: Path) -> None:
    learner = Learner(make_config(method={"name": "ncm"}), backbone)
    learner.learn(folders / "second")
    assert left_out(learner) == (None, "")


@pytest.mark.slow
def test_the_numbers_are_those_of_the_learner(store: Path, strangers: Path, folders: Path, page: Path) -> None:
    learner = Learner.load(store)
    evaluation, text = learner.evaluate(folders / "test"), page.read_text(encoding="utf-8")
    assert facts(text)["accuracy"] == f"{evaluation.accuracy:.1f} %"
    assert (facts(text)["images measured"], facts(text)["of other classes"]) == ("50", "3")
    rows = Elements(text).by_figure
    right = {row[0]: (int(row[1]), int(row[3])) for row in rows["classes"][1:]}
    assert right == evaluation.by_class
    shares = [right / images for right, images in right.values()]
    assert shares == sorted(shares)
    unknown = sum(answer.label == "unknown" for answer in learner.predict(strangers))
    assert sum(int(row[1]) for row in rows["unknown"][1:]) == unknown
    never = [row for row in rows["unknown"] if row[0].endswith("(never learned)")]
    assert [row[2] for row in never] == ["3"]
    confusion = rows["confusion"][1:]
    assert [sum(map(int, row[1:])) for row in confusion] == [10] * 5 + [3]
    assert [int(row[k + 1]) for k, row in enumerate(confusion[:5])] == [right[str(k)][0] for k in range(5)]
    assert sum(int(row[2]) for row in rows["reliability"][1:]) == 50


@pytest.mark.slow
def test_it_stands_alone_and_escapes_every_name(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert not re.search(r"url\((?!#)|@import|<link", text)
    elements = Elements(text)
    assert elements.figures == ["classes", "confusion", "reliability", "unknown", "history", "images"]
    inside = {f"#{name}" for name in elements.ids}
    assert all(one in inside or re.match("data:image/(jpeg|png);base64,", one) for one in elements.addresses)
    assert len(elements.ids) == len(set(elements.ids))
    assert "&lt;script&gt;alert(" in text
    thumbnails = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', text)
    assert 1 < len(thumbnails) <= 24
    for thumbnail in thumbnails:
        with Image.open(io.BytesIO(base64.b64decode(thumbnail))) as image:
            assert max(image.size) in (140, 144)  # of 28 pixels, and of more
    assert {path.stem for path in page.with_name("shop-figures").iterdir()} == set(elements.figures)


@pytest.mark.slow
def test_a_browser_draws_it_on_a_phone_and_on_a_desk(page: Path, tmp_path: Path) -> None:
    for width in (400, 800, 1400):
        seen = look(page, width, tmp_path)
        assert not seen.faults(seen.figures), width
        assert len(seen.figures) == 6
        assert not seen.wide


def many(count: int = 2000) -> tuple[About, Answers]:
    """A learner of a hundred classes, with answers to images of two more."""
    rng = np.random.default_rng(0)
    classes = [HOSTILE, *(f"class {k}" for k in range(1, 100))]
    labels = np.concatenate([np.arange(102), rng.integers(0, 102, count - 102)])
    logits = rng.normal(size=(count, 100))
    logits[np.arange(count), np.minimum(labels, 99)] += 4
    logits[labels == 5, 7] += 9  # always taken for class 7
    odds = np.exp(logits)
    probabilities = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    images = ImageSet.from_arrays(rng.integers(0, 255, (count, 20, 30, 3), dtype=np.uint8), ["a"] * count)
    tasks = [
        TaskRecord(
            name=f"day {t} <i>", when=f"2026-11-{10 + t}", images={name: 7 for name in part}, seconds=1, sha256=""
        )
        for t, part in enumerate(np.reshape(classes, (10, 10)).tolist())
    ]
    about = About(Path("shop"), classes, tasks, Calibration(threshold=0.3, images=9), make_config(), {"name": "<u>"})
    names, familiarity = [*classes, "漢字", "z"], probabilities.max(1)
    return about, Answers("images in <x>", names, labels, probabilities, familiarity, 0.3, images)


@pytest.mark.slow
def test_many_classes_are_grouped(tmp_path: Path) -> None:
    about, answers = many()
    assert write_about(about, tmp_path / "r.html", answers) == 7
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search("<[iux]>", text)
    rows = Elements(text).by_figure
    taken = int((answers.labels == 5).sum())
    assert rows["mistakes"][1] == ["class 5 → class 7", str(taken), str(taken)]
    assert [row[0] for row in rows["confusion"][1:]] == [f"day {t} <i>" for t in range(10)] + ["never learned"]
    assert sum(int(cell) for row in rows["confusion"][1:] for cell in row[1:]) == len(answers.labels)
    assert {"71 others", "class 5"} <= ticks(text, "classes")
    assert text.count("<img ") == 24
    for width in (400, 1400):
        seen = look(tmp_path / "r.html", width, tmp_path)
        assert not seen.faults(seen.figures)
        assert not seen.wide
    untold = About(about.folder, about.classes, about.tasks[:1], Calibration(), about.config, {})
    assert write_about(untold, tmp_path / "r.html", None, "It is <shy>.") == 2
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Probabilities were never calibrated" in text
    assert "It is &lt;shy&gt;." in text


@pytest.mark.slow
def test_images_of_no_learned_class_have_no_accuracy(store: Path, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    shutil.copytree(folders / "test" / "0", tmp_path / "test" / "zero")
    good("report", store, "--images", tmp_path / "test", "--out", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert Elements(text).figures == ["confusion", "unknown", "history", "images"]
    assert "None of these images is of a class that was learned" in text
    assert "accuracy" not in facts(text)


@pytest.mark.slow
def test_answers_are_in_the_order_of_the_images(store: Path, folders: Path) -> None:
    learner = Learner.load(store)
    images = ImageSet.from_files(
        [path for name in "402" for path in sorted((folders / "test" / name).iterdir())[:2]],
        [name for name in "402" for _ in range(2)],
    )
    answers = measured(learner, images, "")
    assert [answers.names[label] for label in answers.labels] == list("440022")
    np.testing.assert_allclose(answers.probability, [one.probability for one in learner.predict(images)], rtol=1e-5)


def test_what_is_refused(store: Path, folders: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(store, run / "learner")
    (run / "results.json").write_text("{}")
    images = ["--images", folders / "test"]
    assert "write e.g. RUN/learner --images FOLDER" in refused("report", "run", *images, cwd=tmp_path)
    assert "no settings to change" in refused("report", "run", "device=cpu", cwd=tmp_path)
    assert "--zoom is for runs" in refused("report", store, "--zoom", cwd=tmp_path)
    assert "write one learner, or runs only" in refused("report", store, "run", cwd=tmp_path)
    assert "write the folder of one, then settings" in refused("report", "device=cpu", cwd=tmp_path)
    assert "write e.g. --out report.html" in refused("report", store, "--out", "r.txt", cwd=tmp_path)
    assert "has no class folders" in refused("report", store, "--images", run, cwd=tmp_path)
    (tmp_path / "report-figures").symlink_to(tmp_path)
    assert "is a link" in refused("report", store, "--out", "report.html", cwd=tmp_path)
    state = next((run / "learner").glob("state-*"))
    os.truncate(state, 100)
    assert "damaged promptcl store" in refused("report", run / "learner", cwd=tmp_path)
