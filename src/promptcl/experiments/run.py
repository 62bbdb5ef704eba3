"""Run an experiment: a learner learns a stream of tasks, and its accuracies go to results.json. T tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from promptcl import store
from promptcl.config.extensions import needs_trust
from promptcl.config.schema import Config, dump_config
from promptcl.data.checked import check_images, remarks_on
from promptcl.data.scenario import make_stream
from promptcl.data.splits import join, load_domains
from promptcl.data.stream import Stream, Task
from promptcl.errors import UserError
from promptcl.experiments import files, metrics, online
from promptcl.experiments.journal import Journal
from promptcl.experiments.progress import Ui
from promptcl.learner.learner import Learner
from promptcl.learner.records import check_names
from promptcl.runtime import processes
from promptcl.runtime.provenance import git_commit, versions

Matrix = list[list[float | None]]

STORE = "learner"
"""Folder of the learner inside the folder of a run: a store like any other."""
JOURNAL = "journal.jsonl"
"""File beside it with the results so far."""


def run(config: Config, out: Path, ui: Ui, resume: bool = False) -> dict[str, Any]:
    """Learn the stream of `config`, evaluate on the way, write `out`/results.json and config.yaml.

    Nothing is written before data, weights and settings have been loaded and checked. What was learned is in the store
    `out`/learner; with `resume`, a run that was interrupted goes on from there, to the same results bit for bit.

    Raises:
        UserError: bad data, weights or settings; a loss that is not finite; `out` holds the learner of another run.
        OSError: `out` cannot be written.
    """
    start, config = time.perf_counter(), store.with_absolute_paths(config)  # so config.yaml works from any folder
    with processes.first_alone():  # process 0 downloads what is missing
        domains = load_domains(config.data)
        stream = make_stream(domains, config)
        fresh = Learner(config)
        config = fresh.config  # keeps the meaning of precision=auto if the run goes on elsewhere
    check_names(list(dict.fromkeys(name for task in stream.tasks for name in task.classes)))
    sets = [stream.everything.train, *(task.test for task in stream.tests)]
    check_images(*sets, data=config.data, tell=ui.reading)  # before anything is learned or written
    with processes.in_first(lambda: store.lock(out / STORE)):
        learner = _begin(fresh, config, out, resume)
        journal, tasks = Journal(out / JOURNAL), stream.tasks
        # A run of an older promptcl knew less.
        done = journal.read({**nothing_done(), **learner.notes["run"]}, len(stream.tests))
        ui.start(len(tasks), config)
        for sentence in (*join(domains).train.notes, *remarks_on(*sets)):  # what was left out of the folders, and such
            _warn_once(done, sentence, ui)
        for record in done["records"]:
            ui.task(record["task"], record["name"])
            ui.task_done(record)
        if not config.memory.store:  # then the images of the memory come from the data
            for t, task in enumerate(tasks[: len(learner.history)]):
                learner.remember(task.train, t)
        before, left = done["seconds"], list(enumerate(tasks))[len(learner.history) :]
        for t, task in left:
            before += _learn(t, task, stream, learner, out / STORE, done, ui)
            if (t + 1) % stream.evaluate_every == 0 or t + 1 == len(tasks):
                _evaluate(t, task, stream, learner, done, ui)
            done["seconds"] = before + time.perf_counter() - start
            learner.notes["run"] = processes.on_first(lambda: journal.write(done))
            learner.save(out / STORE)
        results = processes.on_first(
            # What a run has written when it ended names the versions that it was measured with.
            lambda: (
                (None if left else files.finished(config, out)) or _write(out, _results(config, learner, stream, done))
            )
        )
    ui.finished(results)
    return results


def _begin(learner: Learner, config: Config, out: Path, resume: bool) -> Learner:
    """Save `learner` in `out`, or load the one that a resumed run goes on with."""
    folder, wanted = out / STORE, learner.config
    there = processes.on_first(lambda: store.checksum(folder)) is not None
    if there and not resume:
        raise UserError(f"{folder} holds the learner of another run; go on with that run, or write another folder")
    if there:
        learner = Learner.load(folder, backbone=learner.backbone, trust=needs_trust(wanted))
        if learner.config != wanted:
            raise UserError(f"{out / 'config.yaml'} is not what {folder} was learned with; give back the old one")
        if learner.changes:
            raise UserError(
                f"{folder} was changed (promptcl {learner.changes[-1].what}) after this run; begin a new one"
            )
        return learner
    learner.notes["run"] = nothing_done()
    processes.on_first(lambda: files.write_atomically(out / "config.yaml", dump_config(config)))
    learner.save(folder)
    return learner


def _learn(t: int, task: Task, stream: Stream, learner: Learner, folder: Path, done: dict[str, Any], ui: Ui) -> float:
    """Learn task `t`, answer its images before that in an online stream, and write what it took into `done`.

    Returns the seconds of them that an interrupted process had spent on it.
    """
    ui.task(t, task.name)
    first = {"online": online.answered(learner, task.train)} if stream.online else {}
    start = time.perf_counter()
    learned = learner.learn(task.train, name=task.name, checkpoint=folder, progress=ui)
    before = learned.seconds - (time.perf_counter() - start)
    found = {"images": learned.images, "seconds": learned.seconds, "statistics": learned.statistics}
    done["learned"].append({**found, **first})
    for sentence in learned.warnings:
        _warn(done, sentence, ui)
    return max(0.0, before)


def nothing_done() -> dict[str, Any]:
    """The results of a run before its first task: JSON values, all that a resumed run needs beside its learner."""
    return {
        "records": [],
        "matrix": [],
        "statistics": {"train": [], "test": []},
        "collapsed": None,
        "warnings": [],
        "images": 0,
        "learned": [],  # what learning took since the last evaluation
        "seconds": 0.0,
    }


def _warn(done: dict[str, Any], text: str, ui: Ui) -> None:
    """Show a warning now, and record it in the results."""
    done["warnings"].append(text)
    ui.warn(text)


def _warn_once(done: dict[str, Any], text: str, ui: Ui) -> None:
    if text not in done["warnings"]:
        _warn(done, text, ui)


def _evaluate(t: int, task: Task, stream: Stream, learner: Learner, done: dict[str, Any], ui: Ui) -> None:
    """Evaluate after task `t` and write what it took and gave into `done`."""
    evaluations = []
    for seen in stream.tests_after(t):
        ui.evaluating(seen.name)
        # One test set for all tasks holds classes that have not been learned yet.
        evaluations.append(vars(learner.evaluate(seen.test, unseen=stream.one_test)))
    if len(learner.classes) == 1:
        _warn_once(done, evaluations[0]["warnings"][0], ui)
    matrix: Matrix = done["matrix"]
    row: list[float | None] = [e["accuracy"] for e in evaluations]
    width = len(stream.tests)
    matrix += [[None] * width for _ in range(stream.unknown_rows)]
    matrix.append(row + [None] * (width - len(row)))
    done["images"] += sum(learned["images"] for learned in done["learned"])
    done["statistics"]["train"].append(_together([learned["statistics"] for learned in done["learned"]]))
    done["statistics"]["test"] = [e["statistics"] for e in evaluations]
    record = _record(t, task, learner, done["learned"], evaluations)
    record["images_so_far"] = done["images"]
    if not learner.scenario.boundaries:
        record |= online.measured(evaluations[0]["by_class"], learner.classes, done["learned"], done["records"])
    record["forgetting"] = metrics.forgetting([r[: t + 1] for r in matrix]) if stream.compared else None
    done["records"].append(record)
    _watch_pool(done, ui)
    done["learned"] = []
    ui.task_done(record)


def _together(statistics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of several tasks added up, means averaged (each weighs the same)."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in statistics for name in one):
        values = [one[name] for one in statistics if name in one]
        if isinstance(values[0], list):
            found[name] = [sum(column) for column in zip_longest(*values, fillvalue=0)]
        else:
            found[name] = sum(values) / len(values)
    return found


def _watch_pool(done: dict[str, Any], ui: Ui) -> None:
    """Warn, once, if no more than N prompts have served all tasks so far (l2p issues 18, 24, 25)."""
    counts = [one["prompts"] for one in done["statistics"]["train"] if "prompts" in one]
    images = sum(learned["images"] for learned in done["learned"])
    if len(counts) < 2 or not images or len({len(row) for row in counts}) > 1:  # a pool that grows cannot collapse
        return
    total = [sum(column) for column in zip(*counts, strict=True)]
    selected, used = round(sum(counts[-1]) / images), metrics.used_prompts(total)  # an image selects N
    collapsed = used <= selected < len(total)
    if collapsed and not done["collapsed"]:
        _warn(
            done,
            f"the pool has collapsed: {used} of its {len(total)} prompts serve all tasks so far; compare with "
            f"method.pool_size={used}, or with method.diversify",
            ui,
        )
    done["collapsed"] = collapsed


def _pool(statistics: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Summarise the prompt selections of each task: entropy in bits, prompts used, mean cosine to the selected keys."""
    return [
        {
            "counts": one["prompts"],
            "entropy": metrics.selection_entropy(one["prompts"]),
            "used": metrics.used_prompts(one["prompts"]),
            "cosine": one.get("cosine"),
        }
        if sum(one.get("prompts", []))
        else None
        for one in statistics
    ]


def _task_inference(learner: Learner, stream: Stream, test: Sequence[dict[str, Any]]) -> float | None:
    """How often prompts of the right task were found, where each task has its own and classes tell the task."""
    counts = [one.get("prompts", []) for one in test]
    if not learner.method.task_prompts or not stream.compared or learner.config.scenario != "class":
        return None
    return metrics.task_inference(counts) if all(len(row) == len(counts) for row in counts) else None


def _record(
    t: int, task: Task, learner: Learner, learned: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> dict[str, Any]:
    seconds, images = sum(e["seconds"] for e in evaluations), sum(e["images"] for e in evaluations)
    train_seconds, train_images = sum(r["seconds"] for r in learned), sum(r["images"] for r in learned)
    return {
        "task": t,
        "name": task.name,
        "class_names": list(task.classes),
        "classes": len(learner.classes),
        "accuracies": [e["accuracy"] for e in evaluations],
        "average_accuracy": sum(e["accuracy"] for e in evaluations) / len(evaluations),
        # The same where tasks have equally many test images; what papers with a larger first task report.
        "overall_accuracy": sum(e["accuracy"] * e["images"] for e in evaluations) / images,
        "train_images": train_images,
        "train_seconds": train_seconds,
        "train_images_per_second": train_images / train_seconds,
        "eval_images": images,
        "eval_seconds": seconds,
        "eval_images_per_second": images / seconds,
    }


def _results(config: Config, learner: Learner, stream: Stream, done: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json; metrics that mean nothing in this scenario are null."""
    matrix: Matrix = done["matrix"]
    several, statistics = stream.compared, done["statistics"]
    found = {part: _pool(rows) for part, rows in statistics.items()}
    pool = found if any(any(rows) for rows in found.values()) else None
    return {
        "scenario": config.scenario,
        "average_accuracy": metrics.average_accuracy(matrix),
        "overall_accuracy": done["records"][-1].get("overall_accuracy"),  # none in a run of an older promptcl
        "final_accuracy": matrix[-1][0] if stream.one_test else None,
        "online_accuracy": done["records"][-1].get("online_accuracy"),
        "anytime_accuracy": None if stream.joint else online.anytime(done["records"]),
        "accuracy_curve": [[r["task"] + 1, r["images_so_far"], r["average_accuracy"]] for r in done["records"]],
        "forgetting": metrics.forgetting(matrix) if several else None,
        "learning_accuracy": metrics.learning_accuracy(matrix) if several else None,
        "average_incremental_accuracy": metrics.average_incremental_accuracy(matrix) if several else None,
        "accuracy_matrix": matrix,
        "test_sets": [test.name for test in stream.tests],
        "trained_parameters": learner.trained_parameters(),
        "stored_bytes": sum(t.numel() * t.element_size() for t in learner.method.state_dict().values()),
        "memory_images": len(learner.memory),
        "statistics": statistics,
        "prompt_selections": pool and {k: [e and e["counts"] for e in rows] for k, rows in pool.items()},
        "pool": pool and {"collapsed": done["collapsed"], **pool},
        "task_inference": _task_inference(learner, stream, statistics["test"]),
        "warnings": done["warnings"],
        "schedule": stream.schedule,
        "classes": learner.classes,
        "tasks": done["records"],
        "seconds": done["seconds"],
        "backbone": learner.backbone.describe(),
        "device": str(learner.device),
        "config": config.model_dump(mode="json"),
        "versions": versions(learner.device),
        "git_commit": git_commit(),
    }


def _write(out: Path, results: dict[str, Any]) -> dict[str, Any]:
    files.write_atomically(out / files.RESULTS, json.dumps(results, indent=1) + "\n")
    return results
