"""A learner over a stream of tasks -> results.json. T tasks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from promptcl import metrics
from promptcl.config import Config, dump_config
from promptcl.data import load_split
from promptcl.learner import Evaluation, Learner, LearnRecord
from promptcl.runtime import git_commit, versions
from promptcl.stream import Task, class_incremental
from promptcl.ui import Ui

Matrix = list[list[float | None]]


def run(config: Config, out: Path, ui: Ui) -> dict[str, Any]:
    """Learn the tasks of `config` one after the other, evaluate after each, write `out`/results.json and config.yaml.

    Nothing is written before data, weights and settings have been loaded and checked.

    Raises:
        UserError: bad data, weights or settings; a loss that is not finite.
        OSError: `out` cannot be written.
    """
    start = time.perf_counter()
    split = load_split(config.data)
    tasks = class_incremental(split, config.tasks, config.data.class_order, config.seed)
    learner = Learner(config)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.yaml", dump_config(config))
    records: list[dict[str, Any]] = []
    matrix: Matrix = []
    selections: dict[str, list[list[int] | None]] = {"train": [], "test": []}
    joint = learner.method.joint
    ui.start(1 if joint else len(tasks), config)
    if joint:
        classes = [name for task in tasks for name in task.classes]
        stream = [Task("all tasks", tuple(classes), split.train.of_classes(classes), split.test)]
    else:
        stream = tasks
    for t, task in enumerate(stream):
        steps = config.train.epochs * learner.batches.steps_per_epoch(len(task.train)) if learner.method.trained else 0
        ui.task(t, task.name, steps)
        learned = learner.learn(task.train, ui.step)
        evaluations = []
        for seen in tasks if joint else tasks[: t + 1]:
            ui.evaluating(seen.name)
            evaluations.append(learner.evaluate(seen.test))
        row: list[float | None] = [e.accuracy for e in evaluations]
        if joint:
            blank: list[float | None] = [None] * len(tasks)
            matrix = [*(blank[:] for _ in tasks[1:]), row]
        else:
            matrix.append(row + [None] * (len(tasks) - t - 1))
        selections["train"].append(learned.selections)
        selections["test"] = [e.selections for e in evaluations]
        record = _record(t, task, learner, learned, evaluations)
        record["forgetting"] = None if joint else metrics.forgetting([r[: t + 1] for r in matrix])
        records.append(record)
        ui.task_done(record)
    results = _results(config, learner, matrix, records, selections, time.perf_counter() - start)
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    ui.finished(results)
    return results


def _record(
    t: int, task: Task, learner: Learner, learned: LearnRecord, evaluations: list[Evaluation]
) -> dict[str, Any]:
    seconds, images = sum(e.seconds for e in evaluations), sum(e.images for e in evaluations)
    return {
        "task": t,
        "name": task.name,
        "class_names": list(task.classes),
        "classes": len(learner.classes),
        "accuracies": [e.accuracy for e in evaluations],
        "average_accuracy": sum(e.accuracy for e in evaluations) / len(evaluations),
        "train_images": learned.images,
        "train_seconds": learned.seconds,
        "train_images_per_second": learned.images / learned.seconds,
        "eval_images": images,
        "eval_seconds": seconds,
        "eval_images_per_second": images / seconds,
    }


def _results(
    config: Config,
    learner: Learner,
    matrix: Matrix,
    records: list[dict[str, Any]],
    selections: dict[str, list[list[int] | None]],
    seconds: float,
) -> dict[str, Any]:
    """Everything a reader needs to trust the number; a joint run has no history, so its history metrics are null."""
    whole = not learner.method.joint
    pool = learner.method.pop_selections() is not None
    return {
        "average_accuracy": metrics.average_accuracy(matrix),
        "forgetting": metrics.forgetting(matrix) if whole else None,
        "learning_accuracy": metrics.learning_accuracy(matrix) if whole else None,
        "average_incremental_accuracy": metrics.average_incremental_accuracy(matrix) if whole else None,
        "accuracy_matrix": matrix,
        "trained_parameters": learner.trained_parameters(),
        "prompt_selections": selections if pool else None,
        "classes": learner.classes,
        "tasks": records,
        "seconds": seconds,
        "backbone": learner.backbone.describe(),
        "device": str(learner.device),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def write_atomically(path: Path, text: str) -> None:
    """Write the whole file or nothing: temporary file beside it, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
