"""OS-Prompt: CODA-Prompt in one pass, each block's query being the class token that enters it (arXiv 2402.16189).

ECCV 2024. With `qr` it is OS-Prompt++: in training only, the class token of the plain model says which components a
query should match. The class token that enters block 0 is the same for every image, and so is its prefix.
Differs from the re-uploaded code in: that term is the paper's, between the two softmaxes over keys, where the code has
the squared distance of the queries; new components are orthogonal to trained ones exactly, as in `coda`.
B images, N tokens, M components, D width, K classes so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from promptcl.backbone import Backbone, Prefix
from promptcl.layers.prompts import check_class_token
from promptcl.methods import coda
from promptcl.methods._base import Batch, masked_cross_entropy


class OSPromptOptions(coda.ComponentOptions):
    """Settings of OS-Prompt."""

    qr: float = Field(default=0.0, ge=0)
    """Weight of the term that relates queries to keys as the plain model's class token does: 0 is OS-Prompt, 1e-4
    OS-Prompt++, which makes a second pass in training."""
    detach_query: bool = False
    """Whether no gradient flows through a query into the prefixes of earlier blocks; in the code it does."""


class Model(coda.Model):
    """Components in some blocks and a growing linear head on the class token."""

    about = "components with keys, head; 1 pass"
    Options: ClassVar[type[coda.ComponentOptions]] = OSPromptOptions
    options: OSPromptOptions
    attention = False

    def __init__(self, options: OSPromptOptions, backbone: Backbone, generator: torch.Generator) -> None:
        """Start without components. Raises UserError for a ViT without class token."""
        check_class_token(backbone)
        super().__init__(options, backbone, generator)

    def features(self, backbone: Backbone, batch: Batch, queries: dict[int, Tensor] | None = None) -> Tensor:
        """Class token [B, D] with the prefixes that the class tokens ask for; `queries` gets these by number."""
        number_of = {layer: number for number, layer in enumerate(self.options.layers)}

        def inserts(layer: int, tokens_BND: Tensor) -> Sequence[Prefix]:
            if layer not in number_of:
                return ()
            query_BD = tokens_BND[:, 0].detach() if self.options.detach_query else tokens_BND[:, 0]
            if queries is not None:
                queries[number_of[layer]] = query_BD
            return [self.components.prefix(number_of[layer], query_BD)]

        return backbone(batch.images_BCHW, inserts).pooled_BD  # type: ignore[no-any-return]

    def relation(self, queries: Mapping[int, Tensor], plain_BD: Tensor) -> Tensor:
        """Squared distance of the softmaxes over all keys that queries and `plain_BD` [B, D] give: a mean over images,
        summed over blocks.
        """
        gaps = []
        for number, query_BD in queries.items():
            ours_BM, theirs_BM = (self.components.weights(number, q).softmax(1) for q in (query_BD, plain_BD))
            gaps.append((ours_BM - theirs_BM).square().sum(1).mean())
        return torch.stack(gaps).sum()

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Cross-entropy, and with `ortho` and `qr` their terms."""
        queries: dict[int, Tensor] = {}
        loss = masked_cross_entropy(self.head(self.features(backbone, batch, queries)), batch)
        if self.options.ortho:
            loss = loss + self.options.ortho * self.components.obliqueness()
        return loss + self.options.qr * self.relation(queries, batch.query_BD) if self.options.qr else loss
