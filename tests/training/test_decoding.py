"""Who decodes, and where decoded images are kept, changes no bit of what is learned; Ctrl-C ends it."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ENVIRONMENT, SMALL, make_config
from PIL import Image

from promptcl.backbone import Backbone
from promptcl.data import labelled
from promptcl.data.ahead import Ahead
from promptcl.learner.learner import Learner


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve JPEGs of several sizes, which take a millisecond or more to decode."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(24):
        folder = root / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        size = (200 + 10 * (number % 5), 260, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number}.jpg")
    return root


def learned(photos: Path, backbone: Backbone, method: dict[str, Any], **data: Any) -> dict[str, torch.Tensor]:
    """What is learned of the photos: all tensors, and logits of the photos."""
    train = {"epochs": 2, "batch_size": 5, "query_view": data.pop("query_view", "augmented")}
    config = make_config(data={"name": "folder", **data}, train=train, method=method, eval={"batch_size": 7})
    learner = Learner(config, backbone)
    learner.learn(photos)
    images = labelled(photos, cache_mb=config.data.cache_mb)
    return {**learner.method.state_dict(), "logits": learner.logits(images, learner.labels(images))}


L2P = {"name": "l2p", "pool_size": 4, "top_k": 2, "prompt_length": 2}


@pytest.mark.parametrize("view", ["augmented", "clean"])
def test_workers_and_caches_change_no_bit(photos: Path, backbone: Backbone, tmp_path: Path, view: str) -> None:
    expected = learned(photos, backbone, L2P, workers=0, query_view=view)
    disk = {"disk_mb": 100, "disk_root": str(tmp_path)}
    ways: list[dict[str, Any]] = [
        {"workers": 1},
        {"workers": 3},
        {"workers": 0, "cache_mb": 0},
        {"workers": 3, "cache_mb": 0},
        {"workers": 3, "cache_mb": 1},  # some of them fit
        {"workers": 3, "cache_mb": 0, **disk},  # written
        {"workers": 0, "cache_mb": 0, **disk},  # read
    ]
    for way in ways:
        found = learned(photos, backbone, L2P, query_view=view, **way)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), way
    assert len(list(tmp_path.iterdir())) == 1


def test_a_method_that_reads_only_queries_decodes_no_image_twice(
    photos: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of a next batch that nothing looks at are not read ahead either."""
    read: list[int] = []
    each = Ahead.each
    expect = Ahead.expect

    def counting(self: Ahead, places: Any) -> Any:
        read.append(len(places))
        return each(self, places)

    def planned(self: Ahead, plan: str, places: Any) -> None:
        assert plan != "steps"
        expect(self, plan, places)

    monkeypatch.setattr(Ahead, "each", counting)
    monkeypatch.setattr(Ahead, "expect", planned)
    config = make_config(data={"name": "folder", "augment": "none"}, train={"epochs": 3}, method={"name": "linear"})
    Learner(config, backbone).learn(photos)
    assert sum(read) == 24 + 24  # whether they decode, and their queries


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux says which threads a process has")
@pytest.mark.parametrize("wait", [0.0, 0.4])
def test_ctrl_c_while_workers_decode(photos: Path, tmp_path: Path, wait: float) -> None:
    """In the first reading: one line, exit code 130, no thread that goes on, soon."""
    for copy in range(60):  # seconds of decoding
        for file in sorted(photos.rglob("*.jpg")):
            target = tmp_path / "data" / "train" / f"{file.parent.name}-{copy % 4}" / f"{copy}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(file)
    command = [sys.executable, "-m", "promptcl", "learn", tmp_path / "s", tmp_path / "data" / "train", *SMALL]
    process = subprocess.Popen(
        [*map(str, command), "data.cache_mb=0", "data.workers=4"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(
            signal.signal, signal.SIGINT, signal.SIG_DFL
        ),  # a job in the background ignores it
    )
    tasks, end = Path(f"/proc/{process.pid}/task"), time.monotonic() + 120
    while time.monotonic() < end and len(list(tasks.iterdir())) < 5:  # the four workers and who asks
        time.sleep(0.02)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20  # two where nobody else uses the machine
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_nothing_is_left_after_learning(photos: Path, backbone: Backbone) -> None:
    learned(photos, backbone, L2P, workers=3, cache_mb=0)
    end = time.monotonic() + 2
    while time.monotonic() < end and any(thread.name == "promptcl-decode" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "promptcl-decode"]
