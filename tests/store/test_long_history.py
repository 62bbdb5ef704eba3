"""What is saved can be read again, however long the history: it grows with the tasks, and is refused at the limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config

from promptcl import store
from promptcl.errors import UserError
from promptcl.experiments.journal import Journal
from promptcl.experiments.run import nothing_done
from promptcl.store import Saved, TaskRecord, files, tensor_file

BACKBONE = {"name": "test_vit", "sha256": "0" * 64}


def learned(tasks: int, **notes: Any) -> Saved:
    """A learner of so many tasks of one class each."""
    names = [f"class{t:05d}" for t in range(tasks)]
    rest: dict[str, Any] = {"when": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "sha256": "0" * 64}
    records = [TaskRecord(name=f"task {t + 1}", images={name: 50}, **rest) for t, name in enumerate(names)]
    return Saved(make_config(), BACKBONE, names, records, notes, {"x": torch.zeros(3)})


def size(folder: Path) -> int:
    return (folder / "learner.json").stat().st_size


def test_a_history_of_five_thousand_tasks_is_small_and_read_again(tmp_path: Path) -> None:
    for tasks in (2500, 5000):
        store.save(tmp_path / str(tasks), learned(tasks), ())
        assert len(store.load(tmp_path / str(tasks)).tasks) == tasks
    assert size(tmp_path / "5000") < 2 * 2**20
    assert size(tmp_path / "5000") < 2.01 * size(tmp_path / "2500")


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = learned(3)
    old = store.save(tmp_path, saved, ())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken: list[tuple[Saved, str]] = [
        (replace(saved, notes={"run": ["x" * 1000] * 5}), "and at most 0 are read, so it was not written"),
        (replace(saved, classes=["another"]), "the classes of this learner are not those of its history"),
        (replace(saved, state={"x" * 200: torch.zeros(1)}), "more than a safetensors file can name"),
    ]
    monkeypatch.setattr(files, "LARGEST_JSON", 6000)
    monkeypatch.setattr(tensor_file, "_LARGEST_HEADER", 200)
    for one, reason in broken:
        with pytest.raises(UserError, match=reason):
            store.save(tmp_path, one, [old])
    with pytest.raises(ValueError, match="changes when it is read again"):
        files.write_pair(tmp_path / "learner.json", {"format": 2, "notes": {"1": 1, 1: 2}}, saved.state)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }
    assert store.load(tmp_path).checksum == old


def done_after(tasks: int) -> dict[str, Any]:
    """Results of a run after so many tasks of ten."""
    done = nothing_done()
    for t in range(tasks):
        row = [90.0 / (i + 1) for i in range(t + 1)]
        done["matrix"].append(row + [None] * (9 - t))
        done["records"].append({"task": t, "accuracies": row})
        done["statistics"]["train"].append({"prompts": [1, t]})
    done["warnings"] = ["one"] * (tasks > 2)
    done["statistics"]["test"] = [{"prompts": [tasks]}]
    return {**done, "seconds": 1.5 * tasks}


def test_a_journal_grows_by_what_is_new(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    notes: dict[str, Any] = {}
    lengths = []
    for tasks in range(1, 6):
        journal = Journal(file)
        done = journal.read({**nothing_done(), **notes}, 10)
        assert done == (done_after(tasks - 1) if tasks > 1 else nothing_done())
        notes = journal.write(done_after(tasks))
        assert journal.write(done_after(tasks)) == notes
        lengths.append(len(str(notes)))
        with file.open("ab") as appended:
            appended.write(b'{"of a process": "that was killed before it saved')
    assert max(lengths) - min(lengths) < 10
    assert file.read_text().splitlines()[2].count("90.0") == 2  # a row of the matrix, and of the record


def test_a_journal_that_is_not_what_was_written_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    notes = {**nothing_done(), **Journal(file).write(done_after(3))}
    whole = file.read_bytes()
    for data in (whole[:-1], whole.replace(b"90.0", b"91.0")):
        file.write_bytes(data)
        with pytest.raises(UserError, match="is not what was written: give it back, or begin a new run"):
            Journal(file).read(notes, 10)
    file.unlink()
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        Journal(file).read(notes, 10)
    (tmp_path / "victim").write_text("precious")
    file.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        Journal(file).write(done_after(1))
    assert (tmp_path / "victim").read_text() == "precious"
