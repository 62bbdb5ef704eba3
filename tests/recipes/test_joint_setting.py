"""What method.name=joint was is a setting now."""

from __future__ import annotations

import pytest

from promptcl.errors import UserError
from promptcl.recipes import load_config


def test_the_old_method_names_the_setting() -> None:
    sentence = "method.name=joint is the setting joint=true now; write method.name=linear joint=true train.mask=false"
    with pytest.raises(UserError) as raised:
        load_config("demo", ["method.name=joint"])
    assert str(raised.value) == sentence
    assert load_config("demo", sentence.split("write ")[1].split()).joint


def test_checkpoints_by_time_are_a_setting() -> None:
    assert load_config("demo").train.checkpoint_seconds == 60
    assert load_config("demo", ["train.checkpoint_seconds=null"]).train.checkpoint_seconds is None
    with pytest.raises(UserError, match="greater than 0 or null"):
        load_config("demo", ["train.checkpoint_seconds=0"])
