"""The frozen timm ViT: plain query, prompted forward, input range, fingerprint. Never trained, never saved.

Shapes: B images, C channels, H W pixels, N tokens, P prompt rows, L tokens of one prompt, D width.
The modules of the model are walked as `VisionTransformer.forward_features` of timm does, so that no ViT is copied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import split_model_name_tag
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promptcl.backbone import weights
from promptcl.backbone.build import build
from promptcl.backbone.inserts import Prompt
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError
from promptcl.runtime.device import autocast, pick_precision

_HALF = (0.5, 0.5, 0.5)


class Features(NamedTuple):
    """Class token [B, D] and prompt rows [B, P, D], both after the final norm.

    Rows are in sequence order: prompts of one layer as given, those of a later layer before those of an earlier one.
    """

    pooled_BD: Tensor
    prompts_BPD: Tensor


@dataclass(frozen=True)
class Identity:
    """Which weights these are: architecture, pre-training tag, their file, a hash and what it is of."""

    name: str
    tag: str
    weights: str
    sha256: str
    sha256_of: str


class Backbone(nn.Module):
    """A frozen timm VisionTransformer without its classifier, always in eval mode."""

    vit: Any
    mean: Tensor
    std: Tensor
    class_position_D: Tensor
    """Position vector of the class token; zeros where the model adds none to it."""

    def __init__(
        self, vit: Any, identity: Identity, mean: Sequence[float], std: Sequence[float], precision: str = "fp32"
    ) -> None:
        """Freeze a checked model; `Backbone.create` is the way to get one."""
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.identity, self.precision = identity, precision
        self.name, self.tag, self.sha256 = identity.name, identity.tag, identity.sha256
        self.width = int(vit.embed_dim)
        self.image_size = int(vit.patch_embed.img_size[0])
        covered = vit.pos_embed is not None and not vit.no_embed_class
        position = vit.pos_embed[0, 0].detach().clone() if covered else torch.zeros(self.width)
        self.register_buffer("class_position_D", position, persistent=False)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.activation_checkpointing = False
        """Keep the input of each block only and compute the rest again in the backward pass; the same bits."""
        self.eval()

    @classmethod
    def create(cls, config: BackboneConfig) -> Backbone:
        """Build the model and load its weights, on the CPU and in float32; the global random state is left as it was.

        `weights=random` is the same for every run. Raises UserError for a model, a size or a file that does not fit.
        """
        vit = build(config)
        cfg = vit.pretrained_cfg
        name, tag = split_model_name_tag(config.name)
        mean, std = cfg["mean"], cfg["std"]
        if config.weights == "random":
            identity = Identity(name, "", "random", weights.tensors_sha256(vit), "tensors")
        else:
            repository = cfg.get("hf_hub_id")
            hub = (repository, cfg.get("hf_hub_filename") or "model.safetensors") if repository else None
            path = weights.locate(config.weights, config.name, hub)
            weights.load(vit, path, config.name, resample_patches="patch_size" in config.kwargs)
            source = path.name
            if config.weights == "hub":  # only then the default tag says where the weights are from
                name, tag, source = cfg["architecture"], cfg.get("tag") or "", f"{repository}/{path.name}"
            if path.suffix == ".npz":  # the JAX ViTs are trained on [-1, 1]
                mean, std = _HALF, _HALF
            identity = Identity(name, tag, source, weights.file_sha256(path), "file")
        if config.input_range == "unit":
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        elif config.input_range == "symmetric":
            mean, std = _HALF, _HALF
        backbone = cls(vit, identity, mean, std, pick_precision(config.precision, torch.device("cpu")))
        backbone.activation_checkpointing = config.activation_checkpointing
        return backbone

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: a frozen model has no other."""
        super().train(False)
        return self

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] -> the input range of `backbone.input_range`, on the device of the images."""
        mean, std = (v.to(images_BCHW.device)[:, None, None] for v in (self.mean, self.std))
        return (images_BCHW - mean) / std

    def tokens(self, images_BCHW: Tensor, prompts: Sequence[Prompt] = ()) -> Tensor:
        """All tokens [B, P+N, D] after the final norm; without prompts bit for bit timm's `forward_features`."""
        with autocast(images_BCHW.device, self.precision):
            x_BND = self._enter_last(images_BCHW, prompts)
            out: Tensor = self.vit.norm(self.vit.blocks[-1](x_BND))
        return out.float()

    @torch.no_grad()
    def query(self, images_BCHW: Tensor) -> Tensor:
        """Class token [B, D] of the plain model after the final norm, without gradient (L2P sec. 4.1, q(x))."""
        return self(images_BCHW).pooled_BD  # type: ignore[no-any-return]

    def forward(self, images_BCHW: Tensor, prompts: Sequence[Prompt] = ()) -> Features:
        """Features of the prompted model; gradients flow to the prompts only.

        Raises UserError for a prompt at a layer that the model does not have.
        """
        # prompts are always in front, so the rows that are read are the first ones and the class token follows
        rows = 1 + sum(prompt.tokens_BLD.shape[1] for prompt in prompts)
        with autocast(images_BCHW.device, self.precision):
            x_BND = self._enter_last(images_BCHW, prompts)
            out = self.vit.norm(_last_block(self.vit.blocks[-1], x_BND, rows)).float()
        return Features(out[:, -1], out[:, :-1])

    def _enter_last(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Tokens as they enter the last block, its own prompts included."""
        vit = self.vit
        for prompt in prompts:
            if not 0 <= prompt.layer < len(vit.blocks):
                raise UserError(
                    f"a prompt at layer {prompt.layer} was asked for, {self.name} has layers 0 to {len(vit.blocks) - 1}"
                )
        # The fused bfloat16 attention of PyTorch's CPU build has a backward pass slower than all the rest together.
        fused = self.precision == "fp32" or images_BCHW.device.type != "cpu"
        x_BND: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images_BCHW))))
        for layer, block in enumerate(vit.blocks):
            block.attn.fused_attn = fused
            here = [prompt.tokens_BLD for prompt in prompts if prompt.layer == layer]
            if here:
                x_BND = torch.cat([*here, x_BND], dim=1)
            if layer < len(vit.blocks) - 1:
                again = self.activation_checkpointing and x_BND.requires_grad
                x_BND = checkpoint(block, x_BND, use_reentrant=False) if again else block(x_BND)
        return x_BND

    def describe(self) -> dict[str, object]:
        """What a result records about the backbone. `sha256_of` says whether the hash is of a file or of tensors."""
        return {
            **asdict(self.identity),
            "image_size": self.image_size,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "precision": self.precision,
            "parameters": sum(p.numel() for p in self.vit.parameters()),
        }


def _last_block(block: Any, x_BND: Tensor, rows: int) -> Tensor:
    """The first `rows` rows of `block(x)`: keys and values of all tokens, the rest of these rows only.

    timm's Block and Attention in eval mode, where dropout and stochastic depth do nothing.
    """
    attn = block.attn
    normed = block.norm1(x_BND)
    width = attn.qkv.out_features // 3
    q_weight, kv_weight = attn.qkv.weight.split([width, 2 * width])
    q_bias, kv_bias = (None, None) if attn.qkv.bias is None else attn.qkv.bias.split([width, 2 * width])
    q = F.linear(normed[:, :rows], q_weight, q_bias)
    k, v = F.linear(normed, kv_weight, kv_bias).chunk(2, dim=-1)
    q, k, v = (t.reshape(*t.shape[:2], attn.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v).transpose(1, 2).flatten(2)
    y = getattr(attn, "norm", nn.Identity())(y)  # absent before timm 1.0.16
    if getattr(attn, "gate", None) is not None:
        y = y * attn.gate(normed[:, :rows]).sigmoid()
    x = x_BND[:, :rows] + block.ls1(attn.proj(y))
    out: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return out
