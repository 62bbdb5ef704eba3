"""What a checkpoint keeps of a method: all that training may change, and no frozen weights."""

from __future__ import annotations

from torch import Tensor

from promptcl.backbone import Backbone
from promptcl.methods._base import Method


def state_of(method: Method) -> dict[str, Tensor]:
    """Parameters and buffers of the method, also those that a state dict leaves out, but for weights of a frozen ViT.

    A method that trains the last blocks of a copy of the ViT holds the others as buffers that are not saved: hundreds
    of megabytes of a ViT-B, which never change.
    """
    copies = [part for part in method.modules() if isinstance(part, Backbone)]
    parts = [part for copy in copies for part in copy.modules()]
    frozen = {id(part.get_buffer(name)) for part in parts for name in part._non_persistent_buffers_set}
    buffers = {name: value for name, value in method.named_buffers() if id(value) not in frozen}
    return {**dict(method.named_parameters()), **buffers}
