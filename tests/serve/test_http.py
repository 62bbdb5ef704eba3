"""The interface: what each address answers, and that it is what the library does with the same images."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from helpers import ENVIRONMENT, good, grey, same_state
from serving import Client, busy, copied, labelled, served, until

from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.serve.house import House
from promptcl.serve.uploads import Sent
from promptcl.store import load


@pytest.fixture
def running(store: Path, tmp_path: Path) -> Iterator[tuple[Client, House]]:
    with served(copied(store, tmp_path / "shop")) as found:
        yield found


@pytest.fixture(scope="module")
def answering(store: Path) -> Iterator[Client]:
    """For tests that change nothing."""
    with served(store, read_only=True) as (client, _):
        yield client


@pytest.fixture(scope="module")
def seven(folders: Path) -> list[Path]:
    return sorted((folders / "test").rglob("*.png"))[:7]


def test_answers_are_those_of_the_library(answering: Client, store: Path, seven: list[Path]) -> None:
    parts = [("images", path.name, path.read_bytes()) for path in seven]
    found = answering.post_form("/v1/predict?top=3", parts).json
    wanted = Learner.load(store).predict(seven, top=3)
    assert found["version"] == load(store).checksum
    for path, row, one in zip(seven, found["answers"], wanted, strict=True):
        assert (row["image"], row["label"]) == (path.name, one.label)
        assert [top["label"] for top in row["top"]] == [name for name, _ in one.top]
        assert row["probability"] == pytest.approx(one.probability, abs=1e-5)
        assert row["familiarity"] == pytest.approx(one.familiarity, abs=1e-4)


def test_one_image_may_be_the_body(answering: Client, seven: list[Path]) -> None:
    content = seven[0].read_bytes()
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):  # what curl says
        (row,) = answering.send("POST", "/v1/predict", content, Content_Type=kind).json["answers"]
        assert len(row["top"]) == 1
    (sure,) = answering.send("POST", "/v1/predict?threshold=1", content).json["answers"]
    (any_,) = answering.send("POST", "/v1/predict?threshold=0", content).json["answers"]
    assert (sure["label"], any_["label"]) == ("unknown", row["top"][0]["label"])


def test_a_broken_image_is_told_beside_the_others(answering: Client, seven: list[Path]) -> None:
    parts = [("a", "broken.png", b"no image"), ("b", "good.png", seven[0].read_bytes())]
    bad, right = answering.post_form("/v1/predict", parts).json["answers"]
    assert bad.keys() == {"image", "error"}
    assert "broken.png does not decode as an image" in bad["error"]
    assert right["label"]
    alone = answering.send("POST", "/v1/predict", b"no image")
    assert alone.status == 400
    assert "does not decode" in alone.error


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/v1/predict?top=0", "expected a whole number from 1"),
        ("/v1/predict?top=x", "expected a whole number from 1"),
        ("/v1/predict?top=99999999999999999999", "expected a whole number from 1"),
        ("/v1/predict?top=0000000019999", "expected a whole number from 1"),  # whose first nine digits are 1
        ("/v1/predict?threshold=nan", "expected a probability"),
        ("/v1/predict?threshold=2", "expected a probability"),
    ],
)
def test_odd_numbers_are_refused(answering: Client, path: str, sentence: str) -> None:
    found = answering.send("POST", path, grey(1))
    assert found.status == 400
    assert sentence in found.error


def test_what_is_not_there(answering: Client) -> None:
    assert answering.get("/v1/nothing").status == 404
    assert answering.get("/page/../app.py").status == 404
    assert answering.get("/v1/jobs/none").status == 404
    assert answering.get("/v1/predict").status == 405
    assert "POST" in answering.get("/v1/predict").headers["allow"]
    assert answering.get("/v1/healthz").json == {"state": "ok"}


def test_a_server_that_only_answers_changes_nothing(answering: Client) -> None:
    for path in ("learn", "correct"):
        found = answering.post_form(f"/v1/{path}", [("class", None, b"a"), ("x", "x.png", grey(3))])
        assert (found.status, "--read-only" in found.error) == (403, True)
    for path in ("forget", "rename", "undo"):
        assert answering.post_json(f"/v1/{path}", {}).status == 403
    assert answering.get("/v1/learner").json["read_only"] is True


def test_the_description_has_every_address(answering: Client, running: tuple[Client, House]) -> None:
    found = answering.get("/v1/openapi.json").json
    told = {(path, method) for path, one in found["paths"].items() for method in one if method != "parameters"}
    assert {path for path, _ in told} >= {"/v1/predict", "/v1/learn", "/v1/jobs/{id}"}
    for path, method in told:  # each is there, and no other method
        answer = running[0].send(method.upper(), path.replace("{id}", "x"))
        assert answer.status != 405
        assert answer.status != 404 or "job" in answer.error
        assert running[0].send("PUT", path.replace("{id}", "x")).status == 405


def test_what_it_tells_of_the_learner(answering: Client, store: Path) -> None:
    found, saved = answering.get("/v1/learner"), load(store)
    about = found.json
    assert [one["name"] for one in about["classes"]] == saved.classes
    assert [one["images"] for one in about["classes"]] == [20] * 5
    assert about["left_out"]["images"] == 100
    assert sum(one["left_out"]["right"] for one in about["classes"]) == about["left_out"]["right"]
    assert [task["name"] for task in about["tasks"]] == ["first", "second"]
    assert found.headers["etag"] == f'"{saved.checksum}"'
    assert answering.get("/v1/learner", If_None_Match=found.headers["etag"]).status == 304


def test_what_is_learned_is_what_the_library_learns(
    running: tuple[Client, House], store: Path, folders: Path, tmp_path: Path
) -> None:
    client, _ = running
    some = labelled(folders / "test", 5)
    result = client.done(client.post_form("/v1/learn", [("task", None, b"third"), *some]))
    assert (result["learned"], result["known"], result["new"]) == (25, 0, [])
    assert result["before"]["images"] == 100
    assert result["after"]["images"] == 125
    here, there = Learner.load(tmp_path / "shop"), Learner.load(store)
    images = [path for one in sorted((folders / "test").iterdir()) for path in sorted(one.iterdir())[:5]]
    there.learn(images, [path.parent.name for path in images])
    assert same_state(here, there)
    assert here.history[-1].name == "third"
    assert client.get("/v1/learner").json["version"] == result["version"] == here.ancestors[-1]
    again = client.done(client.post_form("/v1/learn", some))
    assert (again["learned"], again["known"], again["version"]) == (0, 25, result["version"])


def test_a_correction_moves_what_was_learned_and_learns_the_rest(
    running: tuple[Client, House], folders: Path, tmp_path: Path
) -> None:
    client, _ = running
    learned, fresh = sorted((folders / "first" / "0").iterdir())[0], sorted((folders / "test" / "1").iterdir())[0]
    parts = [
        *(("class", None, "Größe <b>".encode()), ("x", "a.png", learned.read_bytes())),
        *(("class", None, b"1"), ("x", "b.png", fresh.read_bytes())),
    ]
    result = client.done(client.post_form("/v1/correct", parts))
    assert (result["moved"], result["learned"], result["new"]) == (1, 1, [])
    learner = Learner.load(tmp_path / "shop")
    assert set(learner.classes) == {"0", "1", "2", "3", "4", "Größe <b>"}
    assert [task.name for task in learner.history] == ["first", "second", "correction"]
    assert client.done(client.post_form("/v1/correct", parts))["version"] == learner.ancestors[-1]


def test_mistakes_are_mended(running: tuple[Client, House]) -> None:
    client, _ = running

    def names() -> list[str]:
        return [one["name"] for one in client.get("/v1/learner").json["classes"]]

    assert client.done(client.post_json("/v1/forget", {"classes": ["4"]}))["images"] == 20
    refused = client.post_json("/v1/rename", {"old": "3", "new": "2"})
    assert (refused.status, "say join" in refused.error) == (409, True)
    client.done(client.post_json("/v1/rename", {"old": "3", "new": "2", "join": True}))
    client.done(client.post_json("/v1/rename", {"old": "2", "new": "two"}))
    assert names() == ["0", "1", "two"]
    client.done(client.send("POST", "/v1/undo"))
    assert client.get("/v1/learner").json["images"] == 60
    for given, sentence in [
        ({"classes": ["9"]}, "never learned"),
        ({"classes": []}, "at least one"),
        ({"classes": [3]}, "at least one"),
        ({"classes": "0"}, "of another type"),
        ({"class": ["0"]}, "expected a JSON object with classes"),
        ([], "expected a JSON object"),
    ]:
        found = client.post_json("/v1/forget", given)
        assert (found.status, sentence in found.error) == (400, True), found.body
    assert client.post_json("/v1/rename", {"old": "0", "new": "unknown"}).status == 400
    assert client.post_json("/v1/rename", {"old": "0", "new": " "}).status == 400
    assert client.send("POST", "/v1/forget", b'{"classes": ["0"]}').status == 415
    assert client.send("POST", "/v1/forget", b"[" * 5000, Content_Type="application/json").status == 400
    client.done(client.post_json("/v1/undo", {}))
    assert names() == []
    assert client.send("POST", "/v1/undo").status == 400
    nothing = client.send("POST", "/v1/predict", grey(3))
    assert (nothing.status, "knows no class yet" in nothing.error) == (409, True)


def test_a_change_of_another_learner_is_refused(running: tuple[Client, House]) -> None:
    client, _ = running
    seen = client.get("/v1/learner").headers["etag"]
    assert client.send("POST", "/v1/undo", If_Match=seen).status == 200
    late = client.send("POST", "/v1/undo", If_Match=seen)
    assert (late.status, "changed meanwhile" in late.error) == (412, True)
    assert client.get("/v1/learner").json["tasks_in_all"] == 1


def test_bad_images_and_names_change_nothing(running: tuple[Client, House]) -> None:
    client, _ = running
    before = client.get("/v1/learner").headers["etag"]
    job = client.job(
        client.post_form("/v1/learn", [("class", None, b"a"), ("x", "one.png", b"1"), ("x", "two.png", b"2")])
    )
    assert job["state"] == "failed"
    assert "one.png" in job["error"]
    assert "two.png" in job["error"]
    same = [("class", None, b"a"), ("x", "x.png", grey(3)), ("class", None, b"b"), ("x", "x.png", grey(3))]
    assert "the same image in two classes" in client.job(client.post_form("/v1/learn", same))["error"]
    for name in (b"unknown", b"a\tb", b"\xff"):
        assert client.post_form("/v1/learn", [("class", None, name), ("x", "x.png", grey(3))]).status == 400
    assert client.get("/v1/learner").headers["etag"] == before


def test_what_others_write_is_taken_over(running: tuple[Client, House], tmp_path: Path) -> None:
    client, _ = running
    good("forget", tmp_path / "shop", "0")
    until(lambda: len(client.get("/v1/learner").json["classes"]) == 4)
    assert client.done(client.post_json("/v1/forget", {"classes": ["1"]}))["names"] == ["1"]


@pytest.mark.slow
def test_another_writer_is_named(running: tuple[Client, House], tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from promptcl.store import lock\n"
    code += "with lock(Path(sys.argv[1])): print('have it', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "shop")]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=ENVIRONMENT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "have it\n"
        found = running[0].send("POST", "/v1/undo")
        assert found.status == 409
        assert f"being written by process {other.pid}" in found.error
        other.communicate()
    assert running[0].send("POST", "/v1/undo").status == 200


def test_a_job_that_is_given_up_keeps_nothing(running: tuple[Client, House], folders: Path) -> None:
    client, house = running
    before = client.get("/v1/learner").headers["etag"]
    hold = busy(house)
    answer = client.post_form("/v1/learn", labelled(folders / "test", 2))
    client.send("DELETE", f"/v1/jobs/{answer.json['id']}")
    hold.set()
    job = client.job(answer)
    assert (job["state"], "given up" in job["error"]) == ("failed", True)
    assert client.get("/v1/learner").headers["etag"] == before


def test_a_store_that_is_gone_is_told(running: tuple[Client, House], tmp_path: Path) -> None:
    client, house = running
    (tmp_path / "shop" / "learner.json").unlink()
    house.keeper.follow()
    assert client.send("POST", "/v1/undo").status in (400, 409)
    assert client.send("POST", "/v1/predict", grey(3)).status == 200
    with pytest.raises(UserError):
        house.keeper.load()


def test_nothing_of_an_image_is_written(
    running: tuple[Client, House], folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the system keeps temporary files: Starlette's own forms would put large ones there."""
    client, house = running
    monkeypatch.setattr(tempfile, "tempdir", "/there is no such folder")
    assert client.post_form("/v1/predict", [("x", "x.png", grey(3) + b"\0" * 3_000_000)]).status == 200
    client.done(client.post_form("/v1/learn", labelled(folders / "test", 2)))
    content = grey(3)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and content in path.read_bytes()]
    assert house.budget.held == 0
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Sent]  # neither in memory, where jobs are remembered
    assert {path.name.partition("-")[0] for path in (tmp_path / "shop").iterdir()} == {".lock", "learner.json", "state"}
    assert json.loads((tmp_path / "shop" / "learner.json").read_text())["tasks"][-1]["name"] == "task 3"
