"""Many ask while it learns, and processes are killed while they learn: nothing fails, nothing half-made answers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ENVIRONMENT, ROOT, SMALL, same_state
from serving import copied, labelled, resident, served, started

from promptcl.learner.learner import Learner
from promptcl.store import load


@pytest.mark.slow
def test_two_hundred_ask_while_it_learns(store: Path, folders: Path, tmp_path: Path) -> None:
    """Each answer is one of the learner of before or of the one of after, as its version says."""
    files = sorted((folders / "test").rglob("*.png"))[:10]
    contents = [file.read_bytes() for file in files]
    with served(copied(store, tmp_path / "shop")) as (client, house), ThreadPoolExecutor(200) as pool:

        def ask(i: int) -> tuple[str, str, float]:
            found = client.send("POST", "/v1/predict", contents[i % 10])
            assert found.status == 200, found.body
            (row,) = found.json["answers"]
            return found.json["version"], row["label"], row["probability"]

        list(pool.map(ask, range(400)))  # the first ones take the memory that all threads need
        memory = resident()
        versions = {client.get("/v1/learner").json["version"]}
        answers, learned = [], []

        def learn() -> None:
            for task in range(3):
                parts = labelled(folders / "test", 2 + task)
                learned.append(client.done(client.post_form("/v1/learn", parts))["version"])

        thread = threading.Thread(target=learn)
        thread.start()
        while thread.is_alive():
            answers += list(zip(range(200), pool.map(ask, range(200)), strict=True))
        thread.join()
        answers += list(zip(range(200), pool.map(ask, range(200)), strict=True))  # of the last learner
        versions |= set(learned)
        assert len(versions) == 4
        assert {version for _, (version, _, _) in answers} <= versions
        assert resident() - memory < 60e6
        assert house.budget.held == 0
        learners = {load(store).checksum: Learner.load(store), learned[-1]: Learner.load(tmp_path / "shop")}
    wanted = {version: learner.predict(files) for version, learner in learners.items()}
    compared = 0
    for i, (version, label, probability) in answers:
        if version in wanted:
            compared += 1
            assert label == wanted[version][i % 10].label
            assert probability == pytest.approx(wanted[version][i % 10].probability, abs=1e-4)
    assert compared > 100


@pytest.mark.slow
def test_a_kill_while_it_learns_loses_nothing(folders: Path, tmp_path: Path) -> None:
    """benchmarks/serve.py kills twenty. The store is made by the server, too."""
    parts = labelled(folders / "first") + labelled(folders / "second")
    shop, whole = tmp_path / "shop", tmp_path / "whole"
    with started(shop, *SMALL, "--recipe", "grow-demo") as server:
        assert server.client.post_form("/v1/learn", parts).status == 202
        time.sleep(0.2)
        server.end(signal.SIGKILL)
    assert len(load(shop).tasks) in (0, 1)
    with started(shop) as server:
        result = server.client.done(server.client.post_form("/v1/learn", parts))  # what was learned is left out
        assert result["learned"] + result["known"] == 100
        assert server.client.done(server.client.post_form("/v1/learn", parts))["known"] == 100
        code, errors = server.end(signal.SIGINT)
    assert (code, errors) == (130, "interrupted\n")
    images = [path for name in ("first", "second") for path in sorted((folders / name).rglob("*.png"))]
    learner = Learner(Learner.load(shop).config)
    learner.learn(images, [path.parent.name for path in images])
    learner.save(whole)
    assert same_state(Learner.load(shop), Learner.load(whole))


@pytest.mark.slow
def test_a_request_to_end_gives_up_what_is_being_learned(store: Path, folders: Path, tmp_path: Path) -> None:
    shop = copied(store, tmp_path / "shop")
    before = load(shop).checksum
    with started(shop) as server:
        parts = [("class", None, b"many")]
        image = (folders / "test" / "0" / "0000.png").read_bytes()
        parts += [("x", f"{i}.png", image + bytes([i % 256, i // 256])) for i in range(3000)]  # type: ignore[misc]
        answer = server.client.post_form("/v1/learn", parts)
        assert answer.status == 202
        code, errors = server.end(signal.SIGTERM)
    assert (code, errors) == (143, "interrupted\n")
    assert load(shop).checksum == before
    assert {path.name.partition("-")[0] for path in shop.iterdir()} == {".lock", "learner.json", "state"}


@pytest.mark.slow
def test_the_example_client(store: Path, folders: Path, tmp_path: Path) -> None:
    with served(copied(store, tmp_path / "shop")) as (client, _):
        url = f"http://127.0.0.1:{client.port}/"
        script = [sys.executable, str(ROOT / "examples" / "client.py"), url, str(folders / "test")]
        done = subprocess.run(script, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "learned 50 images" in done.stdout
    assert done.stdout.count(".png: ") == 5
