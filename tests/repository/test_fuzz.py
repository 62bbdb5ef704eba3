"""Readers answer damaged input with nothing but a UserError; benchmarks/fuzz.py runs tens of thousands of inputs."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import fuzz
import fuzz_serve
import pytest
from fuzz_targets import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TARGETS = targets()
QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def no_server_stays() -> Iterator[None]:
    """No thread of a server may run when a later test forks this process."""
    yield
    fuzz_serve.end()


@pytest.mark.parametrize("name", TARGETS)
def test_real_inputs_are_read(name: str, tmp_path: Path) -> None:
    """Otherwise the other tests would prove nothing."""
    seeds = TARGETS[name].seeds
    good = seeds[:-2] if name == "recipe" else seeds  # the last two are refused on purpose
    assert [fuzz.attempt(TARGETS[name], seed, tmp_path) for seed in good] == ["read"] * len(good)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@settings(QUIET, max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_damaged_inputs_are_read_or_refused(name: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = fuzz.mutated(random.Random(seed), TARGETS[name].seeds)
        assert fuzz.attempt(TARGETS[name], data, tmp_path_factory.getbasetemp()) in ("read", "refused"), data


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@settings(QUIET, max_examples=200)
@given(data=st.binary(max_size=600) | st.text(max_size=200).map(lambda text: text.encode()))
def test_random_inputs_are_read_or_refused(name: str, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert fuzz.attempt(TARGETS[name], data, tmp_path_factory.getbasetemp()) in ("read", "refused"), data
