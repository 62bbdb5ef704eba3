"""The frozen timm ViT: query of the plain model, forward pass with inserts, input range, fingerprint.

Shapes: B images, C channels, H W pixels, N tokens, P rows of all `Tokens`, D width.
The model's modules are called as the `forward_features` of timm's `VisionTransformer` and `Eva` call them, so no ViT is
copied here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promptcl.backbone.block import Rotation, walk
from promptcl.backbone.build import Identity, has_class_feature, load
from promptcl.backbone.inserts import Inner, Insert, Inserts, Prefix, Tokens, check
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError
from promptcl.runtime.device import autocast, pick_precision

Feature = Literal["class", "deep"]
"""Which feature of the plain model a method reads: the class token [D], or tokens of several blocks [5 D]."""
DEEP = 4
"""Number of last blocks whose class tokens are part of a `deep` feature."""


class Features(NamedTuple):
    """Class token [B, D] and the rows of all `Tokens` [B, P, D], both after the final norm.

    In a model without class token, or with one that passes no final norm, `pooled_BD` is the model's own pooling.

    Rows are in sequence order: tokens of one layer as given, those of a later layer before those of an earlier one.
    """

    pooled_BD: Tensor
    prompts_BPD: Tensor


class _Entered(NamedTuple):
    """The sequence as it enters the last block, and what that block needs."""

    x_BND: Tensor
    inside: list[Inner]
    """What is to be inserted inside the last block."""
    prompts: int
    """Number of tokens inserted so far, which stand in front."""
    rotation: Rotation | None


def unit(x_BD: Tensor) -> Tensor:
    """Scale each row to a mean square of 1; a row of zeros stays one."""
    return x_BD / x_BD.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)


class Backbone(nn.Module):
    """A timm VisionTransformer without its classifier, always in eval mode; frozen unless it is a `copy`."""

    vit: Any
    mean: Tensor
    std: Tensor
    class_position_D: Tensor
    """Position vector of the class token; zeros where the model adds none to it."""
    width: int
    """Length of a token vector."""
    depth: int
    """Number of blocks; layers are counted from 0."""
    hidden: int
    """Input width of the second linear layer of a block's MLP."""
    reads_class_token: bool
    """Whether the feature of an image is its class token after the final norm; else it is the model's own pooling."""

    def __init__(
        self, vit: Any, identity: Identity, mean: Sequence[float], std: Sequence[float], precision: str = "fp32"
    ) -> None:
        """Freeze a checked model; `Backbone.create` is the way to get one."""
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.identity, self.precision = identity, precision
        self.name, self.tag, self.sha256 = identity.name, identity.tag, identity.sha256
        self.width, self.depth = int(vit.embed_dim), len(vit.blocks)
        self.hidden = int(vit.blocks[0].mlp.fc2.in_features)
        self.image_size = int(vit.patch_embed.img_size[0])
        self.reads_class_token = has_class_feature(vit)
        covered = vit.cls_token is not None and vit.pos_embed is not None and not vit.no_embed_class
        position = vit.pos_embed[0, 0].detach().clone() if covered else torch.zeros(self.width)
        self.register_buffer("class_position_D", position, persistent=False)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.activation_checkpointing = False
        """Keep only each block's input and compute the rest again in the backward pass; gives the same bits."""
        self.eval()

    @classmethod
    def create(cls, config: BackboneConfig) -> Backbone:
        """Build the model and load its weights, on the CPU and in float32; the global random state is left as it was.

        `weights=random` is the same for every run. Raises UserError for a model, a size or a file that does not fit.
        """
        backbone = cls(*load(config), pick_precision(config.precision, torch.device("cpu")))
        backbone.activation_checkpointing = config.activation_checkpointing
        return backbone

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode, whatever `mode` says: there is no dropout, even in a trainable copy."""
        super().train(False)
        return self

    def copy(self) -> Backbone:
        """Make a trainable copy with weights of its own that require a gradient; this backbone stays as it is."""
        twin = copy.deepcopy(self)
        twin.vit.requires_grad_(True)
        return twin

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] -> the input range of `backbone.input_range`, on the device of the images."""
        mean, std = (v.to(images_BCHW.device)[:, None, None] for v in (self.mean, self.std))
        return (images_BCHW - mean) / std

    def tokens(self, images_BCHW: Tensor, inserts: Inserts = ()) -> Tensor:
        """All tokens [B, P+N, D] after the final norm; without inserts bit for bit timm's `forward_features`."""
        with autocast(images_BCHW.device, self.precision):
            out: Tensor = self.vit.norm(self._leave(self._enter_last(images_BCHW, inserts)))
        return out.float()

    @torch.no_grad()
    def query(self, images_BCHW: Tensor, feature: Feature = "class") -> Tensor:
        """Feature [B, F] of the plain model, without gradient: the class token after the final norm, F = D (L2P sec.
        4.1, q(x)), or what `deep` gives.
        """
        return self.deep(images_BCHW) if feature == "deep" else self(images_BCHW).pooled_BD

    def feature_width(self, feature: Feature) -> int:
        """Length F of a feature."""
        return self.width * (min(DEEP, self.depth) + 1 if feature == "deep" else 1)

    def deep(self, images_BCHW: Tensor, inserts: Inserts = ()) -> Tensor:
        """Class tokens after each of the last four blocks and the mean of the patches after the last one [B, 5 D].

        Each passes the final norm and is then scaled to a mean square of 1, so that all five count alike. The class
        token after the last block is the fourth. Where the model does not read its class token, the first four are
        means of the patches and the fifth is the model's own pooling; if that is their mean, the four are of the blocks
        before. Raises UserError as `forward`.
        """
        seen: list[Tensor] = []
        with autocast(images_BCHW.device, self.precision):
            state = self._enter_last(images_BCHW, inserts, seen)
            x_BND = self._leave(state)
            if self.reads_class_token or self.vit.attn_pool is not None:
                # what enters the first block is the same class token for all images
                seen = [*seen[1:], self._summary(x_BND, state.prompts)]
            tokens_BND = self.vit.norm(x_BND)[:, state.prompts :]
            if self.reads_class_token:
                last_BD = tokens_BND.float()[:, self.vit.num_prefix_tokens :].mean(1)
            else:
                last_BD = self.vit.forward_head(tokens_BND, pre_logits=True).float()
            parts = [*(self._normed(part_BD) for part_BD in seen[-DEEP:]), last_BD]
        return torch.cat([unit(part_BD) for part_BD in parts], 1)

    def forward(self, images_BCHW: Tensor, inserts: Inserts = ()) -> Features:
        """Features of the model with inserts; gradients flow to the inserts, and to the weights of a `copy`.

        Raises UserError for an insert that does not fit the model or the batch.
        """
        with autocast(images_BCHW.device, self.precision):
            state = self._enter_last(images_BCHW, inserts)
            if self.reads_class_token:
                # inserted tokens are always in front: the rows that are read are the first, and the class token follows
                out = self.vit.norm(self._leave(state, rows=state.prompts + 1)).float()
                return Features(out[:, -1], out[:, :-1])
            x_BND = self._leave(state)
            pooled_BD = self.vit.forward_head(self.vit.norm(x_BND)[:, state.prompts :], pre_logits=True).float()
            return Features(pooled_BD, self._normed(x_BND[:, : state.prompts]))

    def _normed(self, x: Tensor) -> Tensor:
        """Tokens after the norms that stand between the last block and the classifier; one of the two is none."""
        return self.vit.fc_norm(self.vit.norm(x)).float()  # type: ignore[no-any-return]

    def _summary(self, x_BND: Tensor, prompts: int) -> Tensor:
        """What stands for the image [B, D] between two blocks: its class token, or the mean of its patches."""
        if self.reads_class_token:
            return x_BND[:, prompts]
        return x_BND[:, prompts + self.vit.num_prefix_tokens :].mean(1)

    def _leave(self, state: _Entered, rows: int | None = None) -> Tensor:
        """The first `rows` rows (None: all) after the last block; timm's own call where that gives the same."""
        block, x_BND, rotation = self.vit.blocks[-1], state.x_BND, state.rotation
        if state.inside or rows is not None or (state.prompts and rotation):
            return walk(block, x_BND, state.inside, rows, rotation)
        return block(x_BND, rope=rotation.angles) if rotation else block(x_BND)  # type: ignore[no-any-return]

    def _embedded(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens as they enter the first block, and timm's rotary positions: of all blocks, or of each [depth, ...]."""
        vit = self.vit
        if isinstance(vit, Eva):
            x_BND, angles = vit._pos_embed(vit.patch_embed(images_BCHW))
            return vit.norm_pre(x_BND), angles
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images_BCHW)))), None

    def _enter_last(self, images_BCHW: Tensor, inserts: Inserts, seen: list[Tensor] | None = None) -> _Entered:
        """Run all blocks but the last. seen: gets what stands for the image [B, D] as it enters each block."""
        vit = self.vit
        if not callable(inserts):
            inserts = tuple(inserts)
            for insert in inserts:
                check(insert, self.name, self.depth, self.width, images_BCHW.shape[0])
        # The fused bfloat16 attention of PyTorch's CPU build has a backward pass slower than all the rest together.
        fused = self.precision == "fp32" or images_BCHW.device.type != "cpu"
        x_BND, angles = self._embedded(images_BCHW)
        inside: list[Inner] = []
        prompts, rotation = 0, None
        for layer, block in enumerate(vit.blocks):
            block.attn.fused_attn = fused
            if seen is not None:
                seen.append(self._summary(x_BND, prompts))
            here = self._inserts_of(layer, inserts, x_BND)
            tokens = [insert.tokens_BLD for insert in here if isinstance(insert, Tokens)]
            if tokens:
                x_BND = torch.cat([*(t.expand(x_BND.shape[0], -1, -1) for t in tokens), x_BND], dim=1)
                prompts += sum(t.shape[1] for t in tokens)
            # a prefix of length 0 is none: its block stays timm's own call
            inside = [
                insert
                for insert in here
                if not isinstance(insert, Tokens) and not (isinstance(insert, Prefix) and not insert.keys_BLD.shape[1])
            ]
            if angles is not None:
                mine = angles[layer] if vit.rope_mixed else angles
                rotation = Rotation(mine, prompts + vit.num_prefix_tokens)
            if layer < self.depth - 1:
                x_BND = self._through(block, x_BND, inside, rotation, prompts)
        return _Entered(x_BND, inside, prompts, rotation)

    def _inserts_of(self, layer: int, inserts: Inserts, x_BND: Tensor) -> Sequence[Insert]:
        """The inserts of one block; those that a function gives are checked here."""
        if not callable(inserts):
            return [insert for insert in inserts if insert.layer == layer]
        if self.precision == "fp32":
            here = tuple(inserts(layer, x_BND))
        else:
            with torch.autocast(x_BND.device.type, enabled=False):
                here = tuple(inserts(layer, x_BND.float()))
        for insert in here:
            check(insert, self.name, self.depth, self.width, x_BND.shape[0])
            if insert.layer != layer:
                raise UserError(
                    f"the function of inserts was asked for layer {layer} and gave one for layer {insert.layer}: "
                    f"give those of layer {layer} only"
                )
        return here

    def _through(
        self, block: Any, x_BND: Tensor, inside: Sequence[Inner], rotation: Rotation | None, prompts: int
    ) -> Tensor:
        """All rows of a block before the last; timm's own call where nothing is inserted that it cannot take."""
        step: Callable[[Tensor], Tensor] = block
        if inside or (rotation and prompts):  # timm would turn the class token where tokens stand in front of it
            step = partial(walk, block, inserts=inside, rotation=rotation)
        elif rotation:
            step = partial(block, rope=rotation.angles)
        # A Change may hold parameters that cannot be seen here, so any insert counts as trainable. The last block never
        # comes here: computing it again right after it was computed would save nothing.
        again = self.activation_checkpointing and torch.is_grad_enabled()
        if again and (x_BND.requires_grad or inside or any(p.requires_grad for p in block.parameters())):
            out: Tensor = checkpoint(step, x_BND, use_reentrant=False)
        else:
            out = step(x_BND)
        return out

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
