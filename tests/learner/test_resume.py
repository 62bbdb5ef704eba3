"""Training that is interrupted goes on bit for bit, and only with what was interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Steps, Stop, digit_tasks, make_config, same_state

from promptcl.backbone.vit import Backbone
from promptcl.data.images import ImageSet
from promptcl.layers.outliers import draw_outliers
from promptcl.learner.learner import Learner
from promptcl.store import files
from promptcl.training.queries import QueryCache

TRAIN = {"epochs": 2, "batch_size": 8, "checkpoint_steps": 2, "checkpoint_seconds": None}
RIDGE = {"name": "l2p_ridge", "pool_size": 4, "top_k": 2, "prompt_length": 2}
TWO_STAGES = {"name": "oneprompt", "layout": [[0, 2], [1, 3]], "outliers": "boundary", "outlier_epochs": 1}


@pytest.fixture(scope="module")
def digits() -> list[ImageSet]:
    """Enough for four steps an epoch."""
    return digit_tasks(14)


def checkpoint(folder: Path, stage: int = 0) -> dict[str, Any]:
    """What the checkpoint of a stage says beside its tensors."""
    document: dict[str, Any] = json.loads((folder / "checkpoint" / f"stage-{stage}.json").read_text())
    return document


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"train": {"optimizer": "adam"}}, [8]),
        ({"train": {"optimizer": "sgd", "schedule": "cosine", "query_view": "clean"}}, [8]),
        ({"train": {"optimizer": "sgd", "schedule": "quarter_cosine"}}, [8]),
        ({"train": {"drop_last": True}, "data": {"augment": "none"}}, [6]),
        ({"method": RIDGE}, [8]),
        ({"method": {"name": "linear", "head_init": "uniform"}}, [8]),
        ({"method": TWO_STAGES, "train": {"schedule": "cosine"}}, [8, 4]),
        ({"method": TWO_STAGES, "scenario": "gaussian"}, [8, 4]),
        ({"memory": {"per_class": 3, "batch_size": 2, "store": True}}, [8]),
    ],
    ids=["adam", "sgd-cosine", "quarter", "drop_last", "l2p_ridge", "linear", "two-stages", "gaussian", "memory"],
)
def test_interrupted_at_any_step(
    changes: dict[str, Any], stages: list[int], backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    config = make_config(**{**changes, "train": {**TRAIN, **changes.get("train", {})}})
    start = Learner(config, backbone)
    if config.method["name"] != "l2p_ridge":  # which trains in its first task only
        start.learn(digits[0])
    before = list(start.classes)
    start.save(tmp_path / "start")
    record, told = start.learn(digits[1], progress=(whole := Steps())), list(enumerate(stages))
    assert whole.stages == told
    assert whole.done == stages
    steps = sum(stages)
    few = len(changes) == 1 and changes.get("train") != {"optimizer": "adam"} and len(stages) == 1
    for number in (1, 4, steps) if few else range(1, steps + 1):
        folder = tmp_path / f"stopped{number}"
        shutil.copytree(tmp_path / "start", folder)
        for again in (number, min(steps, number + 2)):  # interrupted twice; steps done before are reported again
            with pytest.raises(Stop):
                Learner.load(folder, backbone=backbone).learn(digits[1], progress=Steps(again), checkpoint=folder)
        assert (folder / "checkpoint").exists() == (min(steps, number + 2) > 2)
        assert Learner.load(folder, backbone=backbone).classes == before
        parts, heard = Learner.load(folder, backbone=backbone), Steps()
        resumed = parts.learn(digits[1], progress=heard, checkpoint=folder)
        assert heard.stages == told
        assert heard.done == stages
        assert same_state(parts, start)
        assert same_moments(parts, start)
        assert resumed.statistics == record.statistics
        assert resumed.images == record.images
        parts.save(folder)
        assert not (folder / "checkpoint").exists()


def same_moments(one: Learner, other: Learner) -> bool:
    left, right = one.moments, other.moments
    assert {number: values.keys() for number, values in left.items()} == {n: v.keys() for n, v in right.items()}
    return all(torch.equal(value, right[number][name]) for number in left for name, value in left[number].items())


def test_each_stage_has_its_own_checkpoint(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """The finished stage is kept beside the running one; it is not trained again, and it is gone with the save."""
    learner = Learner(make_config(train=TRAIN, method=TWO_STAGES), backbone)
    learner.save(tmp_path)
    with pytest.raises(Stop):
        learner.learn(digits[0], progress=Steps(8 + 3), checkpoint=tmp_path)
    kept = {path.name for path in (tmp_path / "checkpoint").glob("*.json")}
    assert kept == {"stage-0.json", "stage-1.json"}
    assert [checkpoint(tmp_path, stage)["finished"] for stage in (0, 1)] == [True, False]
    assert [checkpoint(tmp_path, stage)["done"] for stage in (0, 1)] == [8, 2]
    parts, steps = Learner.load(tmp_path, backbone=backbone), 0
    step = torch.optim.Adam.step

    def count(self: torch.optim.Adam, closure: Any = None) -> Any:
        nonlocal steps
        steps += 1
        return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", count)
        parts.learn(digits[0], checkpoint=tmp_path)
    assert steps == 2
    parts.save(tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_interrupted_between_two_stages(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands between two stages is done again, with the same random numbers."""
    config = make_config(train=TRAIN, method=TWO_STAGES)
    whole = Learner(config, backbone)
    whole.save(tmp_path)
    whole.learn(digits[0])
    draw, calls = draw_outliers, 0

    def stop_at_second(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Stop
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("promptcl.methods.oneprompt.draw_outliers", stop_at_second)
        with pytest.raises(Stop):
            Learner.load(tmp_path, backbone=backbone).learn(digits[0], checkpoint=tmp_path)
    assert checkpoint(tmp_path)["finished"] is True
    parts = Learner.load(tmp_path, backbone=backbone)
    parts.learn(digits[0], checkpoint=tmp_path)
    assert same_state(parts, whole)


def test_interrupted_where_there_is_no_stage(
    backbone: Backbone, digits: list[ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum that had got half of the images is not saved: all of them are added again, and once."""
    config = make_config(method={"name": "ncm"}, eval={"batch_size": 5})
    whole = Learner(config, backbone)
    whole.learn(digits[0])
    whole.save(tmp_path)
    whole.learn(digits[1], progress=(told := Steps()))
    assert told.stages == []
    remember, calls = QueryCache.remember, 0

    def stop_at_third(self: QueryCache, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stop
        return remember(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(QueryCache, "remember", stop_at_third)
        with pytest.raises(Stop):
            Learner.load(tmp_path, backbone=backbone).learn(digits[1], checkpoint=tmp_path)
    assert not (tmp_path / "checkpoint").exists()
    parts = Learner.load(tmp_path, backbone=backbone)
    parts.learn(digits[1], checkpoint=tmp_path)
    assert same_state(parts, whole)


@pytest.mark.parametrize("method", [{"name": "linear"}, TWO_STAGES], ids=["one stage", "two stages"])
def test_interrupted_after_training(
    method: dict[str, Any], backbone: Backbone, digits: list[ImageSet], tmp_path: Path
) -> None:
    """Killed between the last step and the save, nothing is trained again."""
    whole = Learner(make_config(train=TRAIN, method=method), backbone)
    whole.save(tmp_path)
    whole.learn(digits[0], checkpoint=tmp_path, progress=(told := Steps()))
    parts = Learner.load(tmp_path, backbone=backbone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", None)  # a step would fail
        parts.learn(digits[0], checkpoint=tmp_path, progress=(again := Steps()))
    assert same_state(parts, whole)
    assert again.done == told.done
    assert sum(told.done) > 2


@pytest.mark.slow
def test_checkpoints_by_the_clock(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    """One after each step where seconds ask for it; where neither steps nor seconds do, one an epoch."""
    train = {**TRAIN, "checkpoint_steps": 10**6}
    whole = Learner(make_config(train=train), backbone)
    whole.learn(digits[0])
    for name, seconds, done in (("clock", 1e-6, [1, 2, 5]), ("steps", None, [None, None, 4])):
        learner = Learner(make_config(train={**train, "checkpoint_seconds": seconds}), backbone)
        for stop_at, kept in zip((2, 3, 6), done, strict=True):
            folder = tmp_path / f"{name} {stop_at}"
            learner.save(folder)
            with pytest.raises(Stop):
                Learner.load(folder, backbone=backbone).learn(digits[0], progress=Steps(stop_at), checkpoint=folder)
            assert (folder / "checkpoint").exists() == (kept is not None)
            assert kept is None or checkpoint(folder)["done"] == kept
            parts = Learner.load(folder, backbone=backbone)
            parts.learn(digits[0], checkpoint=folder)
            assert same_state(parts, whole)


def test_time_before_the_interruption_counts(backbone: Backbone, digits: list[ImageSet], tmp_path: Path) -> None:
    learner = Learner(make_config(train=TRAIN), backbone)
    learner.save(tmp_path)
    with pytest.raises(Stop):
        learner.learn(digits[0], progress=Steps(5), checkpoint=tmp_path)
    pair = files.read_pair(tmp_path / "checkpoint" / "stage-0.json", files.Kind("", 2, ""))
    assert pair.document["seconds"] > 0
    files.write_pair(tmp_path / "checkpoint" / "stage-0.json", {**pair.document, "seconds": 1000.0}, pair.tensors)
    record = Learner.load(tmp_path, backbone=backbone).learn(digits[0], checkpoint=tmp_path)
    assert 1000 < record.seconds < 2000
