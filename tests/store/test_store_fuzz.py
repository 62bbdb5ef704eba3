"""Whatever bytes lie in a store: a UserError, or a learner that is whole. PROMPTCL_FUZZ=N: N inputs a test."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptcl.backbone.vit import Backbone
from promptcl.data.splits import load_split
from promptcl.data.stream import class_incremental
from promptcl.errors import UserError
from promptcl.learner.learner import Learner
from promptcl.store import files
from promptcl.store.folder import KIND

pytestmark = pytest.mark.slow
INPUTS = int(os.environ.get("PROMPTCL_FUZZ", "100"))
SETTINGS = settings(max_examples=INPUTS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz") / "store"
    learner = Learner(make_config(), backbone)
    learner.learn(class_incremental(load_split(make_config().data), 5)[0].train)
    learner.save(folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # nothing here loses power, and it takes nearly all the time
        yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole, "a test left its traces"


def outcome(folder: Path, backbone: Backbone) -> Learner | None:
    """The learner, or None for a clean refusal; whatever else is raised fails the test."""
    try:
        learner = Learner.load(folder, backbone=backbone)
    except UserError:
        return None
    return learner


def with_files(folder: Path, files: dict[str, bytes], backbone: Backbone) -> Learner | None:
    """What loading a copy of the store with other files in it gives."""
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    try:
        for name, data in files.items():
            (other / name).write_bytes(data)
        return outcome(other, backbone)
    finally:
        shutil.rmtree(other)


@SETTINGS
@given(data=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_learner_json(folder: Path, backbone: Backbone, data: bytes) -> None:
    assert with_files(folder, {"learner.json": data}, backbone) is None


@SETTINGS
@given(data=st.data())
def test_any_part_of_either_file_replaced(folder: Path, backbone: Backbone, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in folder.iterdir() if p.name != ".lock")))
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(0, 40))
    changed = whole[:start] + data.draw(st.binary(max_size=40)) + whole[start + length :]
    learner = with_files(folder, {path.name: changed}, backbone)
    assert learner is None or changed == whole or json.loads(changed) == json.loads(whole)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of nested JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@SETTINGS
@given(data=st.data())
def test_any_field_replaced_under_a_right_checksum(folder: Path, backbone: Backbone, data: st.DataObject) -> None:
    """What the checksum does not catch: a forger."""
    pair = files.read_pair(folder / "learner.json", KIND)
    document = copy.deepcopy(pair.document)
    *outer, last = data.draw(st.sampled_from(sorted(places(document), key=repr)))
    where: Any = document
    for key in outer:
        where = where[key]
    # sizes are kept small: a pool of 2**40 prompts is an honest out-of-memory error that takes its time
    values = JSON.filter(lambda value: not (isinstance(value, int) and abs(value) > 10**4 and last in SIZES))
    if data.draw(st.booleans()):
        where[last] = data.draw(values)
    else:
        del where[last]
    other = folder.with_name("forged")
    shutil.copytree(folder, other)
    try:
        files.write_pair(other / "learner.json", document, pair.tensors)
        outcome(other, backbone)
    finally:
        shutil.rmtree(other)


SIZES = ("pool_size", "prompt_length", "vote_size", "top_k")


@SETTINGS
@given(data=st.data())
def test_any_tensor_replaced_under_a_right_checksum(folder: Path, backbone: Backbone, data: st.DataObject) -> None:
    pair = files.read_pair(folder / "learner.json", KIND)
    name = data.draw(st.sampled_from(sorted(pair.tensors)) | st.text(max_size=5))
    kind = data.draw(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16]))
    shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
    changed = {**pair.tensors, name: torch.zeros(shape, dtype=kind)}
    other = folder.with_name("forged")
    shutil.copytree(folder, other)
    try:
        files.write_pair(other / "learner.json", pair.document, changed)
        same = name in pair.tensors and (pair.tensors[name].shape, pair.tensors[name].dtype) == (
            torch.Size(shape),
            kind,
        )
        assert (outcome(other, backbone) is None) == (not same)
    finally:
        shutil.rmtree(other)


@SETTINGS
@given(header=st.binary(max_size=120), size=st.integers(0, 2**64 - 1))
def test_any_tensor_file_under_a_right_checksum(folder: Path, backbone: Backbone, header: bytes, size: int) -> None:
    """A safetensors file of any bytes: its own length field, header and data."""
    data = size.to_bytes(8, "little") + header
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("promptcl.store.tensor_file.pieces", lambda tensors: [data])
        other = folder.with_name("forged")
        shutil.copytree(folder, other)
        pair = files.read_pair(folder / "learner.json", KIND)
        files.write_pair(other / "learner.json", pair.document, {})
    try:
        assert outcome(other, backbone) is None
    finally:
        shutil.rmtree(other)
