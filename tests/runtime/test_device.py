"""Which numbers a device can hold, said where there is none of it: for the GPUs of Apple's laptops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import make_config

from promptcl.backbone import Backbone
from promptcl.errors import UserError
from promptcl.methods._base import Method, load_method
from promptcl.runtime.device import check_dtypes, widest_float

MPS = torch.device("mps")  # only named: there is none here
WITHOUT = {"aper", "apt", "coda", "dualprompt", "ease", "l2p", "l2p_prefix", "linear", "ncm", "oneprompt", "osprompt"}
WITHOUT |= {"sprompts", "vq"}
"""Methods that keep nothing in float64."""
SUMS = {"anacp", "e2lora", "fsa", "hide", "l2p_ridge", "ranpac", "ridge", "slca_lora"}


def made(backbone: Backbone, name: str) -> Method:
    model, options = load_method(name), {key: value for key, value in options_of(name).items() if key != "name"}
    return model(model.Options(**options), backbone, torch.Generator().manual_seed(0))


def options_of(name: str) -> dict[str, Any]:
    return dict(make_config(method={"name": name}).method)


def test_sums_are_as_wide_as_the_device_has_numbers() -> None:
    assert widest_float(torch.device("cpu")) == widest_float(torch.device("cuda")) == torch.float64
    assert widest_float(MPS) == torch.float32


@pytest.mark.parametrize("name", sorted(WITHOUT | SUMS))
def test_who_adds_up_in_float64_is_refused_where_there_is_none(backbone: Backbone, name: str) -> None:
    method = made(backbone, name)
    check_dtypes(method, torch.device("cpu"))
    if name in WITHOUT:
        check_dtypes(method, MPS)
    else:
        with pytest.raises(UserError, match=r"^device=mps has no float64, .*; write device=cpu, or take a method"):
            check_dtypes(method, MPS)
