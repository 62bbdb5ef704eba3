"""Who may ask, and how much: other sites, other names for this machine, wrong tokens and too large bodies get 4xx."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import call, encoded, grey
from PIL import Image
from serving import Client, busy, copied, form, served

from promptcl.errors import UserError
from promptcl.serve.house import House
from promptcl.serve.limits import Budget, Limits, Refused
from promptcl.serve.running import Address, bound, checked, urls

TOKEN = "a token of more than 16 letters".replace(" ", "-")
SMALL = replace(
    Limits(),
    image_bytes=5_000,
    ask_bytes=20_000,
    ask_images=3,
    learn_bytes=20_000,
    learn_images=4,
    json_bytes=1_000,
    begin_seconds=1.0,
    idle_seconds=0.3,
    waiting_jobs=1,
)


@pytest.fixture(scope="module")
def local(store: Path) -> Iterator[Client]:
    with served(store, read_only=True) as (client, _):
        yield client


@pytest.fixture(scope="module")
def guarded(store: Path) -> Iterator[Client]:
    """As if it listened on all addresses."""
    with served(store, host="0.0.0.0", token=TOKEN) as (client, _):
        yield client


@pytest.fixture(scope="module")
def small(store: Path) -> Iterator[tuple[Client, House]]:
    """One that takes little, for tests that change nothing."""
    with served(store, limits=SMALL) as found:
        yield found


@pytest.fixture
def changing(store: Path, tmp_path: Path) -> Iterator[tuple[Client, House]]:
    """As `small`, for one test."""
    with served(copied(store, tmp_path / "shop"), limits=SMALL) as found:
        yield found


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8765", "LOCALHOST:80", "localhost."])
def test_names_of_this_machine(local: Client, host: str) -> None:
    assert local.get("/v1/learner", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost@evil", "", "[::1", "a b", "10.0.0.1"],
)
def test_another_name_that_leads_here_is_refused(local: Client, host: str) -> None:
    """DNS rebinding: a page whose name was made to lead to this machine sends that name."""
    for path in ("/", "/v1/learner", "/v1/healthz"):
        found = local.get(path, Host=host)
        assert found.status in (400, 421)
        assert found.error


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://[bad"},
        {"Origin": "file://localhost"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_page_of_another_site_is_refused(local: Client, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/learner"), ("POST", "/v1/undo"), ("POST", "/v1/predict")):
        found = local.send(method, path, Host="localhost:8765", **headers)
        assert (found.status, "another site" in found.error) == (403, True)


def test_a_page_of_its_own_may_ask(local: Client) -> None:
    own = {"Host": "localhost:8765", "Origin": "http://localhost:8765", "Sec_Fetch_Site": "same-origin"}
    assert local.send("POST", "/v1/predict", grey(9), **own).status == 200


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \xe9"],
)
def test_without_its_token_nothing_is_told(guarded: Client, given: str | None) -> None:
    stranger = Client(guarded.port, {} if given is None else {"Authorization": given})
    for method, path in (("GET", "/v1/learner"), ("POST", "/v1/predict"), ("POST", "/v1/undo"), ("GET", "/v1/nothing")):
        found = stranger.send(method, path)
        assert (found.status, found.headers["www-authenticate"]) == (401, "Bearer")
        assert TOKEN not in found.error
    assert stranger.get("/v1/healthz").json == {"state": "ok"}
    assert stranger.get("/").status == 200  # the page holds no secret, and asks for the token


def test_with_its_token_any_name_will_do(guarded: Client) -> None:
    assert guarded.get("/v1/learner", Host="shop.example:80").status == 200
    assert guarded.get("/v1/learner", Host="shop.example", Origin="http://evil.example").status == 403


def test_another_host_needs_a_token() -> None:
    assert checked(Address()).token is None
    assert checked(Address("::1")).token is None
    made = checked(Address("0.0.0.0")).token
    assert made is not None
    assert len(made) > 30
    assert made != checked(Address("0.0.0.0")).token
    for weak in ("short", "x" * 15, "with a space in it", "ü" * 20):
        with pytest.raises(UserError, match="expected at least 16 ASCII characters"):
            checked(Address(token=weak))
    assert urls(Address("::1", token="t" * 16), 80) == f"http://[::1]:80/#token={'t' * 16}"
    assert urls(Address(token="100%41" + "t" * 10), 80).endswith(f"#token=100%2541{'t' * 10}")  # which the page decodes
    assert urls(Address("0.0.0.0"), 80) == f"http://{socket.gethostname()}:80/"


def test_a_port_that_is_taken_is_told() -> None:
    again = pytest.raises(UserError, match=r"cannot be listened on .*write another --port")
    with bound(Address(port=0)) as first, again:
        bound(Address(port=first.getsockname()[1]))
    with pytest.raises(UserError, match="cannot be listened on"):
        bound(Address("no.such.host.invalid", 0))


def test_what_the_command_refuses(tmp_path: Path) -> None:
    for words in (["--token", "short"], ["--read-only"], ["data.name=mnist5k"], ["--recipe", "none"]):
        result = call("serve", tmp_path / "shop", "--port", "0", *words)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert not (tmp_path / "shop").exists()


def test_every_answer_says_what_browsers_may_do(local: Client) -> None:
    for path in ("/", "/page/main.js", "/v1/learner", "/v1/nothing"):
        headers = local.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
    assert local.get("/v1/learner").headers["cache-control"] == "no-store"
    assert local.get("/", Host="evil.example").headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_code_of_its_own_in_it(local: Client) -> None:
    page = local.get("/").body.decode()
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=|javascript:|https?://", page)
    for name in re.findall(r'(?:src|href)="(/[^"]*)"', page):
        found = local.get(name)
        assert found.status == 200
        assert local.get(name, If_None_Match=found.headers["etag"]).status == 304
        assert not re.search(rb"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", found.body)


def test_too_much_at_once(small: tuple[Client, House]) -> None:
    client, house = small
    image = grey(1)

    def many(count: int, size: int = 0) -> list[Any]:
        return [("class", None, b"a")] + [("x", f"{i}.png", image + b"\0" * size) for i in range(count)]

    for path, parts, sentence in [
        ("/v1/predict", [("x", "x.png", b"\0" * 6_000)], "an image of this form is larger"),
        ("/v1/predict", many(4)[1:], "more than 3 images"),
        ("/v1/learn", many(5), "more than 4 images"),
        ("/v1/learn", many(5, 4_900), "this request is larger than"),
        ("/v1/learn", [("class", None, b"a" * 1_001), ("x", "x.png", image)], "a field of this form is larger"),
        ("/v1/learn", [("x", "x" * 1_001, image)], "the name of a file is longer"),
        ("/v1/learn", [("class", None, b"a")] * 11, "too many parts"),
    ]:
        found = client.post_form(path, parts)
        assert (found.status, sentence in found.error) == (413, True), found.body
    assert client.post_json("/v1/forget", {"classes": ["a" * 2_000]}).status == 413
    assert client.send("POST", "/v1/predict", b"\0" * 20_001).status == 413
    assert client.send("POST", "/v1/predict", iter([b"\0" * 5_000] * 5)).status == 413
    assert house.budget.held == 0
    budget = Budget(10)
    budget.take(10)
    with pytest.raises(Refused, match="too much is being sent") as caught:
        budget.take(1)
    assert caught.value.status == 429


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([], "no image came"),
        ([("class", None, b"a")], "no image came"),
        ([("x", "x.png", b"1")], "before any class"),
        ([("class", None, b" "), ("x", "x.png", b"1")], "before any class"),
        ([("name", None, b"a"), ("x", "x.png", b"1")], "unknown field 'name'"),
    ],
)
def test_forms_that_say_too_little(small: tuple[Client, House], parts: list[Any], sentence: str) -> None:
    found = small[0].post_form("/v1/learn", parts)
    assert (found.status, sentence in found.error) == (400, True)


def test_bodies_that_are_no_forms(small: tuple[Client, House]) -> None:
    kind, body = form([("class", None, b"a"), ("x", "x.png", grey(1))])
    for sent in (
        body[:-20],
        body[5:],
        b"",
        b"--",
        b"\r\n" * 50,
        body.replace(b"edge", b"egde"),
        body[: len(body) // 2],
    ):
        assert small[0].send("POST", "/v1/learn", sent, Content_Type=kind).status == 400
    for odd in ("multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'x' * 300}"):
        assert small[0].send("POST", "/v1/learn", body, Content_Type=odd).status == 400
    assert small[0].send("POST", "/v1/learn", body).status == 415


def test_a_body_that_does_not_come_is_given_up(small: tuple[Client, House]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", small[0].port, timeout=20)
    connection.putrequest("POST", "/v1/predict")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"some of it")
    answer = connection.getresponse()
    assert (answer.status, b"did not come to its end" in answer.read()) == (408, True)
    connection.close()


@pytest.mark.parametrize(
    ("asked", "begun"), [(False, b""), (False, b"GET /v1/learner HT"), (True, b"GET /v1/learner HT")]
)
def test_a_connection_without_a_request_is_ended(small: tuple[Client, House], asked: bool, begun: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small[0].port), timeout=20) as connection:
        if asked:
            connection.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(begun)
        while connection.recv(65536):
            pass


def test_too_many_changes_at_once(changing: tuple[Client, House]) -> None:
    client, house = changing
    hold = busy(house)
    parts = [("class", None, b"a"), ("x", "x.png", grey(1))]
    answers = [client.post_form("/v1/learn", parts) for _ in range(3)]
    assert [answer.status for answer in answers] == [202, 429, 429]
    assert answers[-1].headers["retry-after"] == "1"
    hold.set()
    assert client.done(answers[0])["learned"] == 1
    assert house.budget.held == 0


def test_a_signal_may_come_while_a_change_is_noted(changing: tuple[Client, House]) -> None:
    worker = changing[1].worker
    with worker._lock:  # as in `submit`, in the thread in which a signal then calls `stop`
        assert worker._lock.acquire(timeout=1)
        worker._lock.release()
        worker.stop()
    assert worker.closing


def test_images_that_would_take_all_memory_are_refused(local: Client) -> None:
    found = local.send("POST", "/v1/predict", encoded(Image.new("1", (12_000, 12_000))))  # 18 kB
    assert (found.status, "pixels" in found.error) == (400, True), found.body
