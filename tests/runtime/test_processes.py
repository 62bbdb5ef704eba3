"""Several processes train as one: real torchrun with two gloo processes, on real digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENVIRONMENT, make_config, run_quietly, timeless
from torch.distributed import HashStore  # type: ignore[attr-defined]

from promptcl.config.schema import Config, DataConfig
from promptcl.data.augment import train_view
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.runtime import processes
from promptcl.store import files
from promptcl.store.folder import KIND

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TWO_STAGES = {"name": "oneprompt", "layout": [[0, 2], [1, 3]], "outliers": "boundary", "outlier_epochs": 1}
L2P = {"name": "l2p", "pool_size": 4, "top_k": 2, "prompt_length": 2}


def settings(**changes: Any) -> dict[str, Any]:
    data = {"train_per_class": 5, "test_per_class": 3}
    config = make_config(**{"eval": {"batch_size": 5}, **changes, "data": {**data, **changes.get("data", {})}})
    return config.model_dump(mode="json")


# Nothing here divides by two: batches of 7, 7 and 1 of 15 images, test sets of 9 and 6 images in batches of 5.
JOBS = {
    "ten steps": settings(tasks=1, train={"batch_size": 9, "epochs": 2}, data={"train_per_class": 4}),
    "growing": settings(
        tasks=4, train={"batch_size": 7, "checkpoint_steps": 2}, method={**L2P, "diversify": "frequency"}
    ),
    "vote": settings(
        train={
            "batch_size": 10,
            "mask_classes": "batch",
            "query_view": "clean",
            "schedule": "cosine",
            "optimizer": "sgd",
        },
        method={**L2P, "vote": "batch", "vote_size": 4},
        memory={"per_class": 2, "batch_size": 5},
    ),
    # A given strength: one chosen for so few images may be tiny, and then shows the last bits of trained prompts.
    "ridge": settings(
        tasks=3, train={"holdout": 0.3}, method={**L2P, "name": "l2p_ridge", "strength": 0.1, "penalty": "each"}
    ),
    "means": settings(tasks=3, method={"name": "ncm"}, train={"holdout": 0.3}),
    "two stages": settings(tasks=3, method=TWO_STAGES, train={"batch_size": 7, "checkpoint_steps": 2}),
    "general and expert": settings(tasks=3, method={"name": "dualprompt"}, train={"batch_size": 7}),
    "gaussian": settings(
        scenario="gaussian",
        method={"name": "linear"},
        memory={"per_class": 2},
        gaussian={"micro_tasks": 5, "steps": 2, "sigma": 3.0, "evaluate_every": 2},
    ),
}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return files.read_pair(run / "learner" / "learner.json", KIND).tensors


def furthest(one: Path, other: Path) -> float:
    """Largest difference between two learned numbers; in tensors of large numbers, as a share of the largest."""
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left if not left[key].is_floating_point())
    some = [key for key in left if left[key].numel()]  # no row of images is kept here
    return max((left[key] - right[key]).abs().max().item() / max(1, left[key].abs().max().item()) for key in some)


def agree(one: Any, other: Any) -> bool:
    """Whether results agree: accuracies and counts to the last digit, a mean cosine, which is a sum, to 1e-4."""
    if isinstance(one, dict):
        near = {"cosine": 1e-4}
        assert one.keys() == other.keys()
        return all(
            other[key] == pytest.approx(one[key], rel=near[key])
            if key in near and one[key] is not None
            else agree(one[key], other[key])
            for key in one
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(agree, one, other))
    return bool(one == other)


def rank_of(process: Path) -> str | None:
    try:
        lines = (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile, or is somebody else's
        return None
    return next((line[5:].decode() for line in lines if line.startswith(b"RANK=")), None)


def workers(agent: int) -> dict[str, int]:
    """Process id of each rank that the torchrun process `agent` has started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return {rank: int(child) for child in children if (rank := rank_of(Path("/proc", child))) is not None}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two processes, of which one was killed."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the processes of torchrun are looked up in /proc")
    out = tmp_path_factory.mktemp("killed") / "run"
    changes: dict[str, object] = {"train.epochs": 4, "train.checkpoint_steps": 2, "train.batch_size": 7, "tasks": 2}
    changes |= {"data.train_per_class": 6, "backbone.name": "test_vit", "backbone.weights": "random"}
    words = [*(f"{key}={value}" for key, value in changes.items()), "backbone.kwargs={}", "--out", str(out)]
    command = [*TORCHRUN, "-m", "promptcl", "train", "demo", *words]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "learner" / "checkpoint" / "stage-0.json").exists():
        time.sleep(0.02)
    os.kill(workers(process.pid)["1"], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) <= 1, said  # torchrun may end the survivor before it has seen that it is alone
    assert all("has lost the others" in line and "--resume" in line for line in errors)
    assert not (out / "results.json").exists()
    assert Learner.load(out / "learner").classes == []
    return out


@pytest.fixture(scope="module")
def together(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of two processes for each job; the killed run is finished too."""
    out = tmp_path_factory.mktemp("together")
    (out / "jobs.json").write_text(json.dumps(JOBS))
    script = Path(__file__).with_name("processes_job.py")
    command = [*TORCHRUN, *map(str, (script, out / "jobs.json", out, killed))]
    tests = str(Path(__file__).parents[1])  # where helpers.py lies
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join((ENVIRONMENT["PYTHONPATH"], tests))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    (out / "printed").write_text(result.stdout)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_two_processes_learn_what_one_learns(name: str, together: Path, tmp_path: Path) -> None:
    alone = run_quietly(Config.model_validate(JOBS[name]), tmp_path)
    results = json.loads((together / name / "results.json").read_text())
    assert agree(timeless(results), timeless(alone))
    assert furthest(together / name, tmp_path) < 1e-5
    if name == "ten steps":
        assert results["tasks"][0]["train_images"] == 80
        assert max(t.abs().max() for t in tensors(tmp_path).values()) > 1e-2


@pytest.mark.slow
def test_an_error_of_the_first_is_that_of_all(together: Path) -> None:
    for rank in (0, 1):
        said = json.loads((together / f"said{rank}").read_text())
        assert said["processes"] == 2
        assert said["errors"] == ["UserError('one sentence')", "OSError(28, 'full')"]


@pytest.mark.slow
def test_what_the_processes_exchange(together: Path) -> None:
    """Process 0 adds 1 to each sum, process 1 adds 10, on top of what was there: both end with the same."""
    for rank in (0, 1):
        said = json.loads((together / f"said{rank}").read_text())
        assert said["add_up"] == [[3.0, 30.0], [[1 + 2**52]], []]
        assert said["types"] == ["torch.float32", "torch.int64", "torch.float64"]
        assert said["everyones"] == [{"mine": 0}, {"mine": 1}]
        assert said["sum"] == [100.0 + 11, 11.0]  # the second row came while both added
        assert said["unsaved"] == [7 + 11]
        assert said["again"] == [100.0 + 22, 22.0]
        assert said["counts"] == {"prompts": [2, 1, 0, 1], "experts": [1, 1]}
        assert said["means"] == {"cosine": (1.0 + 2.0 + 6.0) / 3}


def test_alone_there_is_nothing_to_exchange() -> None:
    part = torch.arange(3)
    assert processes.add_up([part])[0] is part
    assert processes.everyones("mine") == ["mine"]
    assert processes.on_first(lambda: 3) == 3
    gathered = processes.gather([torch.ones(2, 3), torch.zeros(1, 3)], slice(0, 3), (3, 3), torch.device("cpu"))
    assert gathered.sum(1).tolist() == [3, 3, 0]


@pytest.mark.slow
def test_resume_finishes_what_was_killed(killed: Path, together: Path, tmp_path: Path) -> None:
    printed = (together / "printed").read_text().splitlines()
    assert len(printed) == 4  # a headline, two tasks, the end: the other process prints nothing
    assert printed[-1].startswith("done average_accuracy ")
    results = json.loads((killed / "results.json").read_text())
    alone = run_quietly(Config.model_validate(results["config"]), tmp_path)
    assert agree(timeless(results), timeless(alone))
    assert furthest(killed, tmp_path) < 1e-4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_while_it_loads_is_given_up(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for one that trains: after five minutes, a fifth of a second here."""
    assert timedelta(minutes=5) == processes.TIMEOUT
    be(monkeypatch, rank, 2)
    monkeypatch.setattr(processes, "_store", HashStore())
    monkeypatch.setattr(processes, "TIMEOUT", timedelta(seconds=0.2))
    passed = []
    waited = pytest.raises(UserError, match=f"process {rank} of 2 has waited .* minutes for another")
    with waited, processes.first_alone():
        passed.append(rank)
    assert passed == ([0] if rank == 0 else [])


def test_other_verbs_are_refused() -> None:
    environment = {**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "promptcl", "list"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "error: torchrun started 2 processes: only promptcl train has work for several; leave out torchrun\n"
    )


def be(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setattr(processes, "_rank", rank)
    monkeypatch.setattr(processes, "_size", size)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("whole", [1, 4])
def test_shares_are_all_rows_once(size: int, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 1, 2, 7, 8, 16, 33):
        rows: list[int] = []
        lengths = []
        for rank in range(size):
            be(monkeypatch, rank, size)
            mine = range(count)[processes.share(count, whole)]
            assert not mine or mine.start % whole == 0
            rows += mine
            lengths.append(len(mine))
        assert rows == list(range(count))
        assert max(lengths) - min(lengths) <= 2 * whole - 1


def test_a_part_of_a_batch_looks_as_in_the_whole() -> None:
    images: Sequence[torch.Tensor] = [
        torch.randint(256, (3, side, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(side))
        for side in (8, 9, 10, 8, 11)
    ]
    generator = torch.Generator().manual_seed(3)
    whole = train_view(images, 16, DataConfig(), generator)
    for rows in (slice(0, 2), slice(2, 5), slice(5, 5)):
        again = torch.Generator().manual_seed(3)
        assert torch.equal(train_view(images[rows], 16, DataConfig(), again, rows=rows, total=5), whole[rows])
        assert torch.equal(again.get_state(), generator.get_state())
