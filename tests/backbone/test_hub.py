"""Weights that timm publishes: from the cache of the hub, or one sentence where they cannot be downloaded."""

from __future__ import annotations

import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from promptcl.backbone import Backbone
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub on a machine without network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_hub_weights_are_read_from_the_cache(hub_cache: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    state = {key: torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) for key, value in state.items()}
    folder = hub_cache / "models--timm--test_vit.r160_in1k"
    for part in ("snapshots/0123", "refs"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    save_file(state, folder / "snapshots" / "0123" / "model.safetensors")
    backbone = Backbone.create(BackboneConfig(name="test_vit", weights="hub"))
    for key, value in backbone.vit.state_dict().items():
        assert torch.equal(value, state[key]), key
    described = backbone.describe()
    assert described["weights"] == "timm/test_vit.r160_in1k/model.safetensors"
    assert (described["name"], described["tag"], described["sha256_of"]) == ("test_vit", "r160_in1k", "file")
    assert backbone.image_size == 160


def test_a_failed_download_says_how_to_go_on(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (
        r"^model\.safetensors of timm/test_vit\.\w+ could not be downloaded \(.{1,80}\): set backbone\.weights to a "
    )
    whole += r"local file \(.*\), or take what needs no download, .*--recipe grow-demo .* demo$"
    # Nothing listens there; without help, huggingface_hub tries for half a minute and says so eleven times.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}")
    began = time.monotonic()
    with pytest.raises(UserError, match=whole):
        Backbone.create(BackboneConfig(name="test_vit", weights="hub"))
    assert time.monotonic() - began < 10
    assert "Retry" not in "".join(capfd.readouterr())
    with pytest.raises(UserError, match="timm publishes no weights for vit_small_patch16_36x1_224"):
        Backbone.create(
            BackboneConfig(
                name="vit_small_patch16_36x1_224", weights="hub", kwargs={"depth": 2, "embed_dim": 48, "num_heads": 3}
            )
        )


def test_the_embedded_weights() -> None:
    kwargs = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
    backbone = Backbone.create(BackboneConfig(name="vit_tiny_patch16_224", weights="embedded", kwargs=kwargs))
    assert (backbone.image_size, backbone.describe()["weights"]) == (32, "demo_vit.safetensors")
    assert backbone.query(torch.zeros(1, 3, 32, 32)).shape == (1, 192)
