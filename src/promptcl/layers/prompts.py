"""Prompt pool, key-query matching, selection. B images, M pool size, N selected, L prompt tokens, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from promptcl.backbone import Backbone
from promptcl.config import Section
from promptcl.errors import UserError

Init = Literal["uniform", "normal", "symmetric"]


class HeadOptions(Section):
    """Settings that methods with a linear head have in common."""

    head_init: Literal["zero", "uniform"] = "zero"
    """Values that the head's rows of a new class start with: zeros, or torch.nn.Linear's uniform ones."""
    prompt_lr: float | None = Field(default=None, gt=0)
    """Learning rate of all that is trained but the head (of l2p: but head and keys); null: the one of the head."""


class PromptOptions(HeadOptions):
    """Settings that methods with prompts and a linear head have in common."""

    prompt_init: Init = "uniform"
    """Values that a prompt starts with, s being `init_scale`: `uniform` U[0, s), `normal` N(0, s^2), `symmetric`
    U[-s, s)."""
    init_scale: float = Field(default=0.01, gt=0)
    """Scale of the values that a prompt starts with."""


def groups(method: nn.Module, head: nn.Module, lr: float, prompt_lr: float | None) -> list[dict[str, Any]]:
    """What of `method` requires a gradient, as an optimiser takes it: `head` at `lr`, the rest at `prompt_lr`."""
    trained = [p for p in method.parameters() if p.requires_grad]
    if prompt_lr is None:
        return [{"params": trained, "lr": lr}]
    heads = set(head.parameters())
    return [
        {"params": [p for p in trained if p in heads], "lr": lr},
        {"params": [p for p in trained if p not in heads], "lr": prompt_lr},
    ]


def initialise(shape: tuple[int, ...], kind: Init, scale: float, generator: torch.Generator) -> Tensor:
    """Draw initial values of `shape`: `uniform` U[0, scale), `normal` N(0, scale^2), `symmetric` U[-scale, scale)."""
    if kind == "normal":
        return torch.empty(shape).normal_(0.0, scale, generator=generator)
    low = 0.0 if kind == "uniform" else -scale
    return torch.empty(shape).uniform_(low, scale, generator=generator)


def cosine(a_BD: Tensor, b_MD: Tensor) -> Tensor:
    """Cosine similarity [B, M]; vectors are divided by sqrt(max(|v|^2, 1e-12)) as in the L2P release."""
    return _unit(a_BD) @ _unit(b_MD).T


def _unit(v: Tensor) -> Tensor:
    return v * torch.rsqrt(v.square().sum(-1, keepdim=True).clamp_min(1e-12))


def top_n(similarity_BM: Tensor, n: int) -> Tensor:
    """Ids [B, n] of the n most similar keys, best first; ties go to the lower id (torch.topk does not promise it)."""
    return similarity_BM.sort(dim=1, descending=True, stable=True).indices[:, :n]


def rarely_chosen(similarity_BM: Tensor, frequency_M: Tensor, n: int) -> Tensor:
    """Ids [B, n] with the smallest (1 - cosine) * h_m (L2P eq. 4); equal products, e.g. h_m = 0, go by similarity."""
    by_similarity_BM = top_n(similarity_BM, similarity_BM.shape[1])
    weighted_BM = ((1 - similarity_BM) * frequency_M).gather(1, by_similarity_BM)
    return by_similarity_BM.gather(1, top_n(-weighted_BM, n))


def vote(index_BN: Tensor, pool_size: int, group: int) -> Tensor:
    """Choose the same prompts for all images of a group by majority vote, as in the L2P release.

    Each image casts N equal votes; the N ids with most votes, ties to the lower id, serve the whole group.
    Args: index_BN ids chosen per image; pool_size M; group: consecutive images that vote (the last may be fewer).
    Returns: [B, N] ids, equal within a group.
    """
    n = index_BN.shape[1]
    chosen = []
    for part in index_BN.split(group):
        voted = part.flatten()
        counts = part.new_zeros(pool_size).scatter_add_(0, voted, torch.ones_like(voted))
        chosen.append(top_n(counts[None], n).expand(len(part), n))
    return torch.cat(chosen)


class PromptPool(nn.Module):
    """M prompts of L tokens with one key each (L2P sec. 4.1, eq. 3)."""

    def __init__(self, prompts_MLD: Tensor, keys_MD: Tensor) -> None:
        """Take the initial prompts [M, L, D] and keys [M, D]."""
        super().__init__()
        self.prompts_MLD = nn.Parameter(prompts_MLD)
        self.keys_MD = nn.Parameter(keys_MD)

    def match(self, query_BD: Tensor) -> Tensor:
        """Cosine similarity [B, M] of each query with each key."""
        return cosine(query_BD, self.keys_MD)

    def take(self, index_BN: Tensor) -> Tensor:
        """Tokens [B, N*L, D] of the chosen prompts, in the order chosen."""
        tokens_BNX = F.embedding(index_BN, self.prompts_MLD.flatten(1))  # its gradient is deterministic
        return tokens_BNX.view(index_BN.shape[0], -1, self.prompts_MLD.shape[-1])  # len() would fix B in an export


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise UserError for a layer that a ViT of `depth` blocks does not have, before anything is written."""
    if odd := [layer for layer in layers if not 0 <= layer < depth]:
        raise UserError(
            f"the method's options name layer {odd[0]}, the ViT has layers 0 to {depth - 1}; write layers that it has"
        )


def check_class_token(backbone: Backbone) -> None:
    """Raise UserError for a ViT that has no class token to put something into, before anything is written."""
    if not backbone.reads_class_token:
        raise UserError(
            f"this method works on the class token, which {backbone.name} does not read; take a ViT that does, for "
            "instance backbone.name=vit_base_patch16_224"
        )
