"""What the documentation says works, works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from promptcl.backbone import Backbone
from promptcl.config import BackboneConfig
from promptcl.methods._base import Batch, load_method
from promptcl.runtime import task_generator

ROOT = Path(__file__).parents[1]


def test_the_method_of_the_adding_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(encoding="utf-8"), re.S)[0]
    module = ModuleType("promptcl.methods.mine")
    monkeypatch.setitem(sys.modules, "promptcl.methods.mine", module)
    exec(compile(code, "adding.md", "exec"), module.__dict__)
    model = load_method("mine")
    backbone = Backbone.create(BackboneConfig(name="test_vit", weights="random", image_size=32))
    method = model(model.Options(), backbone.width, task_generator(0, 0, "test"))
    method.grow(3, task_generator(0, 0, "grow"))
    images = torch.rand(2, 3, 32, 32)
    loss = method.loss(backbone, Batch(images, backbone.query(images), torch.tensor([0, 2])), None)
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-6)
    gradients = {name: p.grad is not None for name, p in method.named_parameters()}
    assert gradients == {"prompt_LD": True, "head.weight_KD": True, "head.bias_K": True}


def test_links_between_documents_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
