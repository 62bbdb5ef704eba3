"""Several pairs in one folder: none removes the tensors of another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from promptcl.store import files

KIND = files.Kind("thing", 1, "get another")
DOCUMENT = {"format": 1}
STAGES = {"stage-0": 0.0, "stage-1": 1.0, "stage-2": 2.0}


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """A folder of three pairs."""
    for name, value in STAGES.items():
        files.write_pair(tmp_path / "stages" / f"{name}.json", DOCUMENT, {"x": torch.tensor(value)})
    return tmp_path / "stages"


def values(folder: Path) -> dict[str, float]:
    """What each pair of the folder holds."""
    return {path.stem: float(files.read_pair(path, KIND).tensors["x"]) for path in folder.glob("stage-*.json")}


def test_pairs_of_one_folder_leave_each_other_alone(stages: Path) -> None:
    assert values(stages) == STAGES
    files.write_pair(stages / "stage-1.json", DOCUMENT, {"x": torch.tensor(5.0)})
    assert values(stages) == {**STAGES, "stage-1": 5}
    assert len(list(stages.iterdir())) == 6  # the old tensors of that one are gone
    files.remove_pair(stages / "stage-0.json")
    assert values(stages) == {"stage-1": 5, "stage-2": 2}
    assert len(list(stages.iterdir())) == 4
    files.remove_pair(stages / "stage-1.json")
    files.remove_pair(stages / "stage-2.json")
    assert not stages.exists()


def test_pairs_of_equal_tensors_share_their_file(stages: Path) -> None:
    files.write_pair(stages / "stage-1.json", DOCUMENT, {"x": torch.tensor(0.0)})
    assert len(list(stages.glob("state-*"))) == 2
    files.remove_pair(stages / "stage-0.json")
    assert values(stages) == {"stage-1": 0, "stage-2": 2}


@pytest.mark.parametrize("damage", ["cut", "digit", "nothing", "nested", "bytes", "array"])
def test_a_damaged_neighbour_keeps_its_tensors(stages: Path, damage: str) -> None:
    neighbour = stages / "stage-0.json"
    text = neighbour.read_bytes()
    place = text.index(b'sha256": "') + 10
    digit = b"0" if text[place : place + 1] != b"0" else b"1"
    damaged = {
        "cut": text[: place + 3],
        "digit": text[:place] + digit + text[place + 1 :],
        "nothing": b"",
        "nested": b"[" * 100_000,
        "bytes": b"\xff" + text,
        "array": b"[" + text + b"]",
    }
    neighbour.write_bytes(damaged[damage])
    files.write_pair(stages / "stage-1.json", DOCUMENT, {"x": torch.tensor(5.0)})
    files.remove_pair(stages / "stage-2.json")
    neighbour.write_bytes(text)  # repaired
    assert values(stages) == {"stage-0": 0, "stage-1": 5}
    files.write_pair(stages / "stage-1.json", DOCUMENT, {"x": torch.tensor(6.0)})
    assert len(list(stages.iterdir())) == 4  # what could not be told apart before is removed now


def test_json_that_is_of_no_pair_keeps_nothing(stages: Path) -> None:
    (stages / "a folder.json").mkdir()
    os.mkfifo(stages / "pipe.json")  # reading it would never end
    (stages / "mine.json").write_text('{"state": {"sha256": 3}, "words": ["a", "b"]}')
    (stages / "numbers.json").write_text("[1, 2]")
    files.write_pair(stages / "stage-1.json", DOCUMENT, {"x": torch.tensor(5.0)})
    assert values(stages) == {**STAGES, "stage-1": 5}
    assert len(list(stages.glob("state-*"))) == 3
