"""Read finished runs from results.json and group them by their settings. Imports no torch. T tasks, M prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from promptcl.errors import UserError
from promptcl.reports.schedules import MOST_CELLS, AnySchedule, Array, Whole
from promptcl.runtime import disk

# What no run can have measured would be drawn for ever, or be no number any more.
Percent = Annotated[float, Field(ge=-100.01, le=100.01)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Counts = Annotated[list[Whole], Field(min_length=1)]
_MOST_BYTES = 2**26
_MOST_VALUES = 3_000_000
_MOST_ROWS = 10_000
_MOST_RUNS = 1_000
_MOST_LEVELS = 20
Rows = Field(max_length=_MOST_ROWS)


class _Piece(BaseModel):
    """Base of everything that is read of results.json."""

    model_config = ConfigDict(allow_inf_nan=False)  # keys that a later version adds are ignored


class Record(_Piece):
    """A measurement of a run, after one task."""

    task: Annotated[int, Field(ge=0, le=10**6)]
    name: str
    average_accuracy: Percent
    forgetting: Percent | None = None
    train_images: Whole | None = None
    train_seconds: Seconds | None = None
    eval_images: Whole | None = None
    eval_seconds: Seconds | None = None
    online_accuracy: Percent | None = None
    seen_accuracy: Percent | None = None
    class_names: list[str] = []


def _drawable(rows: list[list[int] | None]) -> list[list[int] | None]:
    """Refuse counts of prompts that fill more cells than a figure has, each row as wide as the widest."""
    if len(rows) * max((len(row) for row in rows if row), default=0) > MOST_CELLS:
        raise ValueError(f"more than {MOST_CELLS:,} tasks times prompts")
    return rows


class Selections(_Piece):
    """How often each prompt was selected: one list for each task."""

    train: Annotated[list[Counts | None], Rows, AfterValidator(_drawable)] = []
    test: Annotated[list[Counts | None], Rows, AfterValidator(_drawable)] = []


class Match(_Piece):
    """How well the selected keys fit the queries."""

    cosine: Annotated[float, Field(ge=-1.01, le=1.01)] | None = None


class Pool(_Piece):
    """How well keys fit queries, one entry for each task, as in Selections."""

    train: Annotated[list[Match | None], Rows] = []
    test: Annotated[list[Match | None], Rows] = []


class Results(_Piece):
    """The part of results.json that reports use."""

    average_accuracy: Percent
    forgetting: Percent | None
    learning_accuracy: Percent | None
    average_incremental_accuracy: Percent | None = None
    stored_bytes: Whole | None = None
    online_accuracy: Percent | None = None
    anytime_accuracy: Percent | None = None
    accuracy_matrix: list[list[Percent | None]] = Field(min_length=1, max_length=_MOST_ROWS)
    trained_parameters: Whole
    prompt_selections: Selections | None = None
    pool: Pool | None = None
    warnings: Annotated[list[str], Rows] = []
    schedule: AnySchedule | None = None
    tasks: list[Record] = Field(min_length=1, max_length=_MOST_ROWS)
    test_sets: Annotated[list[str], Rows] = []
    seconds: Seconds
    backbone: dict[str, Any]
    device: str
    config: dict[str, Any]
    versions: dict[str, str]
    git_commit: str | None

    @field_validator("accuracy_matrix")
    @classmethod
    def _rectangle(cls, matrix: list[list[float | None]]) -> list[list[float | None]]:
        if not matrix[0] or len({len(row) for row in matrix}) > 1:
            raise ValueError("expected rows of one length")
        if len(matrix) * len(matrix[0]) > MOST_CELLS:
            raise ValueError(f"more than {MOST_CELLS:,} accuracies")
        if all(value is None for row in matrix for value in row):
            raise ValueError("no accuracy was measured")
        return matrix

    @field_validator("config")
    @classmethod
    def _plain(cls, config: dict[str, Any]) -> dict[str, Any]:
        seed = config.get("seed")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):  # it names figures and their files
            raise ValueError("seed is no whole number")
        if _levels(config) > _MOST_LEVELS:
            raise ValueError(f"more than {_MOST_LEVELS} levels")
        return config

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        seed: int | None = self.config.get("seed")
        return seed

    @property
    def settings(self) -> dict[str, str]:
        """Every setting but the seed, by dotted key."""
        return dict(_flat({key: value for key, value in self.config.items() if key != "seed"}))


@dataclass(frozen=True)
class Group:
    """Runs whose settings differ in nothing but the seed."""

    letter: str
    name: str
    paths: list[Path]
    """The results.json of each run."""
    runs: list[Results]

    @property
    def whole(self) -> bool:
        """All tasks were learned at once."""
        return len(self.runs[0].tasks) == 1 and self.runs[0].learning_accuracy is None

    def curve(self, key: str) -> Array:
        """The value `key` after each task, [seeds, T]; NaN where there is none."""
        return as_array([[getattr(task, key) for task in run.tasks] for run in self.runs])

    def matrix(self) -> Array:
        """Accuracy matrix [T, T], the mean over seeds; NaN where there is none."""
        matrix: Array = np.mean([as_array(run.accuracy_matrix) for run in self.runs], axis=0)
        return matrix

    def task_names(self) -> list[str]:
        """What was learned before each measurement: names of domains or data sets, numbers where tasks have no name."""
        tasks = self.runs[0].tasks
        return _names([task.name for task in tasks], [task.task + 1 for task in tasks])

    def test_names(self) -> list[str]:
        """Names of the columns of the matrix, numbers where there are none."""
        run = self.runs[0]
        count = len(run.accuracy_matrix[0])
        names = run.test_sets or [task.name for task in run.tasks]  # older results do not name their test sets
        numbers = list(range(1, count + 1))
        return _names(names, numbers) if len(names) == count else [str(number) for number in numbers]


def read(paths: Sequence[Path]) -> list[Group]:
    """Read and group the runs in `paths`: folders of runs, folders written with --seeds, or results.json files.

    Raises:
        UserError: a path that is no run, or results that cannot be read.
    """
    files = dict.fromkeys(file.resolve() for path in paths for file in _files(path))
    if len(files) > _MOST_RUNS:
        raise UserError(f"{len(files):,} runs are too many for a page; give at most {_MOST_RUNS:,}")
    groups: dict[tuple[object, ...], Group] = {}
    seeds: dict[tuple[object, ...], list[object]] = {}
    for file in files:
        run = _load(file)
        shape = (len(run.tasks), len(run.accuracy_matrix), len(run.accuracy_matrix[0]))
        # The same seed again, perhaps with another version, is no further sample: it opens a group of its own.
        settings, number = json.dumps(run.settings, sort_keys=True), 0
        while run.seed in seeds.setdefault((settings, shape, number), []):
            number += 1
        key = (settings, shape, number)
        seeds[key].append(run.seed)
        group = groups.setdefault(key, Group(_letters(len(groups)), _name(file.parent), [], []))
        group.paths.append(file)
        group.runs.append(run)
    return list(groups.values())


def as_array(rows: Sequence[Sequence[float | None]]) -> Array:
    """Rows of one length as an array; None becomes NaN."""
    return np.array(rows, dtype=np.float64)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if path.exists():
            return [path]
        raise UserError(
            f"{path}: it does not exist; give the folder of a finished run of promptcl train, or of a learner"
        )
    if (path / "results.json").exists():
        return [path / "results.json"]
    found = sorted(path.glob("seed*/results.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    if found:
        return found
    raise UserError(
        f"{path}: it holds no results.json; give the folder of a finished run of promptcl train, or of a learner"
    )


def _load(path: Path) -> Results:
    text = disk.read(path, _MOST_BYTES)
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _MOST_VALUES:  # each takes far more memory than bytes
        raise UserError(f"{path}: it holds more than {_MOST_VALUES:,} values; give the results of a smaller run")
    try:
        return Results.model_validate(json.loads(text))  # not by pydantic: a path in it may be no Unicode
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(
            f"{path}: not the results of a run, or of a version that this one cannot read ({reason}); "
            "give the folder of a finished run of promptcl train"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not the results of a run, no whole JSON; give the folder of a finished run of promptcl train"
        ) from error


def _levels(value: Any) -> int:
    """How deep lists and dictionaries lie in one another."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inner), default=0)


def _name(folder: Path) -> str:
    """The name of a run's folder without its seed."""
    name = folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
    return re.sub(r"-seed\d+(-\d+)?$", "", name) or "run"


def _names(names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """`names`, or `numbers` where the names are only numbers too."""
    numbered = all(re.fullmatch(r"(micro-)?task \d+", name) for name in names)
    return [str(number) for number in numbers] if numbered else list(names)


def _letters(number: int) -> str:
    """The letter of a group by its number from 0: A, B, ..., Z, AA, AB, ..."""
    head = _letters(number // 26 - 1) if number >= 26 else ""
    return head + chr(ord("A") + number % 26)


def _flat(settings: dict[str, Any], head: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
