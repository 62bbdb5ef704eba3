"""The commands on real digits in folders, with a small timm ViT: what is printed, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, TRAINED, call, good, write_folders
from PIL import Image

from promptcl.config.schema import Config, DataConfig
from promptcl.data.augment import eval_view
from promptcl.data.inputs import labelled
from promptcl.data.splits import load_split
from promptcl.errors import UserError
from promptcl.learner.export import Program, description, export
from promptcl.learner.learner import Learner
from promptcl.learner.records import Prediction


@pytest.mark.parametrize("recipe", ["grow-demo", "grow-adapted-demo"])
def test_learning_in_two_calls_is_learning_twice_in_python(
    recipe: str, folders: Path, request: pytest.FixtureRequest
) -> None:
    from promptcl.recipes.load import load_config

    learner = Learner(load_config(recipe, SMALL if recipe == "grow-demo" else TRAINED))
    learner.learn(folders / "first")
    learner.learn(folders / "second")
    loaded = Learner.load(request.getfixturevalue("store" if recipe == "grow-demo" else "trained_store"))
    assert loaded.classes == learner.classes == ["0", "1", "2", "3", "4"]
    ours, theirs = learner.method.state_dict(), loaded.method.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.calibration == learner.calibration
    if recipe == "grow-demo":  # each image is left out once, and learned
        assert loaded.calibration.images == 5 * 20
        assert ours["rows.labels_N"].bincount().tolist() == [20] * 5
    else:  # a fifth is held out for the calibration, and learned in the end
        assert loaded.calibration.images == 5 * 4
        assert ours["ridge.count_K.value"].tolist() == [20] * 5


@pytest.mark.slow
def test_learn_shows_how_it_went_and_checks(folders: Path, tmp_path: Path) -> None:
    text = good(
        "learn", tmp_path / "s", folders / "first", *SMALL, "--recipe", "grow-demo", "--check", folders / "test"
    )
    assert text.startswith("learning 60 images of 3 classes\nlearned 60 images\n3 new classes: 0, 1, 2\n")
    assert "old classes" not in text
    assert all(
        len(line) <= 80 for line in text.splitlines() if "/" not in line.split(" ")[0] and str(folders) not in line
    )
    before = good("evaluate", tmp_path / "s", folders / "first")
    text = good("learn", tmp_path / "s", folders / "second", "--check", folders / "test")
    assert "% before, " in text
    assert "  was " in text
    assert "nothing to do" in good("learn", tmp_path / "s", folders / "first")
    text = good("learn", tmp_path / "s", folders / "first", "--quiet", "--again")
    assert "learned 60 images\n" in text
    assert "new class" not in text
    assert "█" not in text
    assert "█" in before or "#" in before


@pytest.mark.slow
def test_a_drop_larger_than_allowed_keeps_the_old_learner(folders: Path, tmp_path: Path) -> None:
    """Digits 1 called 0 and the other way round: the old classes must suffer."""
    good("learn", tmp_path / "s", folders / "first", *SMALL, "--recipe", "grow-demo", "--quiet")
    files = {
        p: p.read_bytes() for p in (tmp_path / "s").iterdir() if p.is_file() and p.name.endswith(("json", "tensors"))
    }
    for name in ("0", "1"):
        write_folders(labelled(folders / "first").of_classes([name]), tmp_path / "wrong")
        (tmp_path / "wrong" / name).rename(tmp_path / "wrong" / f"was{name}")
    (tmp_path / "wrong" / "was0").rename(tmp_path / "wrong" / "1")
    (tmp_path / "wrong" / "was1").rename(tmp_path / "wrong" / "0")
    words = ("learn", tmp_path / "s", tmp_path / "wrong", "--check", folders / "test", "--quiet", "--again")
    refused = call(*words, "--max-drop", 1)
    assert refused.exit_code == 2
    assert "more than --max-drop 1: nothing was kept" in " ".join(refused.stderr.split())
    assert {p: p.read_bytes() for p in files} == files
    assert len(Learner.load(tmp_path / "s").history) == 1
    assert "1: nothing" not in good(*words, "--max-drop", 100)
    assert len(Learner.load(tmp_path / "s").history) == 2


def test_predict_names_every_image(store: Path, folders: Path) -> None:
    image = folders / "test" / "0" / "0000.png"
    rows = json.loads(good("predict", store, folders / "test", "--json", "--top", 3))
    assert len(rows) == 50
    assert set(rows[0]) == {"image", "label", "probability", "familiarity", "top"}
    assert len(rows[0]["top"]) == 3
    alone = json.loads(good("predict", store, image, "--json", "--top", 3))
    assert alone[0]["image"] == rows[0]["image"] == str(image)
    assert alone[0]["probability"] == pytest.approx(rows[0]["probability"], abs=1e-5)
    piped = json.loads(good("predict", store, "-", "--json", data=image.read_bytes()))
    assert piped[0]["probability"] == pytest.approx(alone[0]["probability"], abs=1e-6)
    assert f"{image}: " in good("predict", store, image)
    right = sum(Path(row["image"]).parent.name == row["top"][0]["label"] for row in rows)
    result = json.loads(good("evaluate", store, folders / "test", "--json"))
    assert result["accuracy"] == pytest.approx(100 * right / 50)
    assert result["accuracy"] > 40  # chance is 20
    assert sum(row["right"] for row in result["classes"].values()) == right


def test_unknown_below_the_threshold(store: Path, folders: Path) -> None:
    learner = Learner.load(store)
    limit = learner.calibration.threshold
    assert limit is not None
    _, familiarity_N = learner.answers(labelled(folders / "test"), torch.zeros(50, dtype=torch.long))
    assert familiarity_N is not None
    unknown = [answer.label == "unknown" for answer in _check_thresholds(learner, folders)]
    assert unknown == (familiarity_N.double() < limit).tolist()
    assert 0 < sum(unknown) < 50
    said = good("predict", store, folders / "test" / "0", "--threshold", 1)
    assert "unknown" in said


def test_unknown_is_a_small_probability_where_the_method_knows_no_better(folders: Path) -> None:
    learner = Learner(_config({"name": "l2p_ridge"}, holdout=0.8))
    learner.learn(folders / "first")
    limit = learner.calibration.threshold
    assert limit is not None
    assert 0 < limit < 1
    learner.learn(folders / "second")
    limit = learner.calibration.threshold
    assert limit is not None
    for answer in _check_thresholds(learner, folders):
        assert (answer.label == "unknown") == (answer.probability < limit)


def test_without_enough_right_answers_nothing_is_unknown(trained_store: Path, folders: Path) -> None:
    """Four images of each class were held out."""
    learner = Learner.load(trained_store)
    assert learner.calibration.threshold is None
    assert all(answer.label != "unknown" for answer in _check_thresholds(learner, folders))


def _check_thresholds(learner: Learner, folders: Path) -> list[Prediction]:
    """What the learner says without a threshold of one's own, compared with what it says with 0 and with 1."""
    everything, found = learner.predict(folders / "test", threshold=0), learner.predict(folders / "test")
    assert all(answer.label == "unknown" for answer in learner.predict(folders / "test", threshold=1))
    for answer, plain in zip(found, everything, strict=True):
        assert plain.label == plain.top[0][0]
        assert answer.label in ("unknown", plain.label)
        assert answer.probability == plain.probability
    return found


def test_info(store: Path) -> None:
    about = json.loads(good("info", store, "--json"))
    assert about["classes"] == ["0", "1", "2", "3", "4"]
    assert [task["images"] for task in about["tasks"]] == [{"0": 20, "1": 20, "2": 20}, {"3": 20, "4": 20}]
    assert about["bytes"] < 5e6
    text = good("info", store)
    assert "classes   5: 0, 1, 2, 3, 4" in text
    assert "second: 40 images" in text


def test_the_folder_of_a_run_says_where_its_learner_is(store: Path, tmp_path: Path) -> None:
    (tmp_path / "learner").symlink_to(store)
    result = call("info", tmp_path)
    assert result.exit_code == 2
    assert f"write {tmp_path / 'learner'}" in " ".join(result.stderr.split())


def test_the_line_that_a_store_was_begun_with_may_be_said_again(store: Path, folders: Path) -> None:
    said = good("learn", store, folders / "first", *SMALL, "--recipe", "grow-demo", "--quiet")
    assert said.startswith("these very images were learned before: nothing to do")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learn", "S", "F", "--max-drop", "1"], "write --check FOLDER too"),
        (["learn", "S", "F", "--recipe", "grow"], "keeps the recipe that it was made with"),
        (["learn", "S", "F", "method.name=ncm"], "cannot change"),
        (["learn", "S", "nowhere"], "nowhere does not exist"),
        (["predict", "nowhere", "F"], "nowhere does not exist; expected the folder of a promptcl store"),
        (["predict", "S", "nowhere.png"], "there is no such file"),
        (["evaluate", "S", "F/0"], "has no class folders"),
        (["info", "F"], "is not a promptcl store: there is no learner.json in it"),
        (["export", "S", "model.h5"], "expected a file that ends in .pt2 or .onnx"),
    ],
)
def test_refusals(store: Path, folders: Path, words: list[str], message: str) -> None:
    places = {"S": str(store), "F": str(folders / "first"), "F/0": str(folders / "first" / "0")}
    result = call(*[places.get(word, word) for word in words])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert result.stderr.startswith("error: ")


@pytest.mark.slow
def test_exported_program_gives_the_same_probabilities(store: Path, folders: Path, tmp_path: Path) -> None:
    good("export", store, tmp_path / "model.pt2")
    about = json.loads((tmp_path / "model.pt2.json").read_text())
    images = labelled(folders / "test")
    pixels = eval_view(images.images(range(len(images))), about["image_size"], about["eval_crop"])
    learner = Learner.load(store)
    answers = learner.predict(images, top=99)
    wanted = torch.tensor([[dict(row.top)[name] for name in about["classes"]] for row in answers])
    familiar = torch.tensor([row.familiarity for row in answers])
    exported = torch.export.load(tmp_path / "model.pt2")
    assert not [name for name in exported.state_dict if "rows" in name or "scatter" in name]  # nothing of single images
    program = exported.module()
    for batch in (1, 50):
        found, familiarity = program(pixels[:batch])
        assert (found - wanted[:batch]).abs().max() < 1e-5
        torch.testing.assert_close(familiarity, familiar[:batch], rtol=1e-4, atol=1e-4)
    assert about["threshold"] == learner.calibration.threshold
    assert about["outputs"]["probabilities"] == "float32 (B, 5), in the order of `classes`"


def test_a_program_without_familiarity_gives_the_largest_probability(folders: Path) -> None:
    learner = Learner(_config({"name": "linear"}))
    learner.learn(folders / "second")
    probabilities, familiarity = Program(learner)(torch.rand(3, 3, 32, 32))
    assert torch.equal(familiarity, probabilities.max(1).values)
    assert description(learner)["threshold"] is None


@pytest.mark.slow
def test_exported_onnx_gives_the_same_probabilities(store: Path, folders: Path, tmp_path: Path) -> None:
    good("export", store, tmp_path / "model.onnx")
    import onnxruntime as runtime

    pixels = eval_view(labelled(folders / "test").images(range(5)), 32, 1.0)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    assert [one.name for one in session.get_outputs()] == ["probabilities", "familiarity"]
    found, familiarity = session.run(None, {"images": pixels.numpy()})
    learner = Learner.load(store)
    answers = learner.predict(labelled(folders / "test").select(range(5)), top=99)
    wanted = np.array([[dict(row.top)[name] for name in learner.classes] for row in answers])
    assert np.abs(found - wanted).max() < 1e-5
    np.testing.assert_allclose(familiarity, [row.familiarity for row in answers], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported(folders: Path, tmp_path: Path) -> None:
    learner = Learner(_config({"name": "l2p", "vote": "batch"}))
    with pytest.raises(UserError, match="knows no class"):
        export(learner, tmp_path / "a.pt2")
    with pytest.raises(UserError, match="knows no class"):
        learner.predict(folders / "test")
    learner.learn(folders / "second")
    with pytest.raises(UserError, match="depends on its neighbours"):
        export(learner, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def _config(method: dict[str, Any], **train: Any) -> Config:
    return Config.model_validate(
        {
            "backbone": {"name": "test_vit", "weights": "random", "image_size": 32},
            "train": {"epochs": 1, "batch_size": 16, **train},
            "method": method,
        }
    )


def test_images_of_any_form_are_learned_alike(folders: Path) -> None:
    images = labelled(folders / "second")
    names = [images.classes[label] for label in images.labels]
    arrays = [image.permute(1, 2, 0).numpy() for image in images.images(range(len(images)))]
    forms: list[Any] = [
        arrays,
        [Image.fromarray(array) for array in arrays],
        [images.name(i) for i in range(len(images))],
    ]
    states = []
    for form in forms:
        learner = Learner(_config({"name": "ncm"}))
        learner.learn(form, labels=names)
        assert learner.evaluate(form, labels=names).images == 40
        states.append(learner.method.state_dict()["means.sum_KD.value"])
    assert all(torch.equal(state, states[0]) for state in states)


def test_small_folders_get_more_epochs_but_not_without_end() -> None:
    batches = Learner(_config({"name": "l2p"}, min_steps=100)).batches
    assert batches.epochs(16 * 20) == 5  # of 20 steps each
    assert batches.epochs(16) == 8  # and not a hundred
    assert batches.epochs(16 * 500) == 1


def test_balanced_batches_draw_each_class_alike() -> None:
    images = load_split(DataConfig(name="mnist5k")).train
    images = images.select([*np.flatnonzero(images.labels == 0)[:5], *np.flatnonzero(images.labels == 1)])
    learner = Learner(_config({"name": "l2p"}, balance=True))
    drawn = images.labels[learner.batches.order(images, torch.Generator().manual_seed(0)).numpy()]
    assert len(drawn) == 405
    assert 160 < (drawn == 0).sum() < 240
