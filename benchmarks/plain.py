"""L2P written straight from the paper, two full passes an image and nothing saved: what `promptcl bench` compares with.

`promptcl bench RECIPE --engine plain` runs it beside promptcl. It is the obvious PyTorch program for the same training:
torchvision's transforms on one image at a time, timm's ViT as timm ships it (with fused attention), queries computed
anew in every pass, a head with all classes from the start, Adam, in float32.
B images, N selected, L tokens of a prompt, D width.
"""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from promptcl.backbone import weights
from promptcl.config.schema import Config
from promptcl.data.images import ImageSet


class Engine:
    """Trains on one task and evaluates, as the recipe `l2p` says; other methods are not here."""

    vit: Any
    parameters: list[nn.Parameter]

    def __init__(self, config: Config, classes: int, device: torch.device) -> None:
        """Draw prompts, keys and head. Raises ValueError, which says what it expects, for other settings."""
        wanted = {"name": "l2p", "vote": "image", "diversify": "none", "position": "none", "pooling": "prompt"}
        for key, value in wanted.items():
            if config.method.get(key, value) != value:
                raise ValueError(f"method.{key}={value}")
        if config.data.augment == "flip" or config.backbone.input_range != "weights":
            raise ValueError("data.augment=crop or none and backbone.input_range=weights")
        done = {
            "epochs",
            "batch_size",
            "lr",
            "lr_batch",
            "clip_norm",
            "query_view",
            "checkpoint_steps",
            "checkpoint_seconds",
        }
        for key, field in type(config.train).model_fields.items():
            if key not in done and getattr(config.train, key) != field.default:
                raise ValueError(f"train.{key}={field.default}")
        if config.memory.per_class:
            raise ValueError("memory.per_class=0")
        self.config, self.device, options = config, device, config.method
        backbone = config.backbone
        kwargs = {**backbone.kwargs, **({"img_size": backbone.image_size} if backbone.image_size else {})}
        vit: Any = timm.create_model(backbone.name, num_classes=0, **kwargs).eval().requires_grad_(False)
        if backbone.weights not in ("random", "hub"):
            weights.load(vit, weights.locate(backbone.weights, backbone.name, None), backbone.name)
        self.vit = vit.to(device)
        size, width = int(vit.patch_embed.img_size[0]), int(vit.embed_dim)
        pool, length = options["pool_size"], options["prompt_length"]
        self.prompts = nn.Parameter(0.01 * torch.rand(pool, length, width, device=device))
        self.keys = nn.Parameter(0.01 * torch.rand(pool, width, device=device))
        self.head = nn.Linear(width, classes).to(device)
        self.parameters = [self.prompts, self.keys, *self.head.parameters()]
        data = config.data
        cfg = vit.pretrained_cfg
        last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(cfg["mean"], cfg["std"])]
        crop: list[Any] = [v2.RandomResizedCrop(size, data.crop_scale, data.crop_ratio, antialias=True)]
        if data.augment == "none":
            crop = [v2.Resize((round(size / data.eval_crop),) * 2, antialias=True), v2.CenterCrop(size)]
        flip = [v2.RandomHorizontalFlip()] if data.hflip and data.augment != "none" else []
        self.train_transform = v2.Compose([*crop, *flip, *last])
        resize = v2.Resize((round(size / data.eval_crop),) * 2, antialias=True)
        self.eval_transform = v2.Compose([resize, v2.CenterCrop(size), *last])

    def _features(self, images_BCHW: Tensor, prompts_BPD: Tensor | None = None) -> Tensor:
        """All tokens after the final norm; prompts stand in front."""
        x_BND = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images_BCHW)))
        if prompts_BPD is not None:
            x_BND = torch.cat([prompts_BPD, x_BND], dim=1)
        out_BND: Tensor = self.vit.norm(self.vit.blocks(x_BND))
        return out_BND

    def _logits(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and the sum of the cosines to the selected keys [B]."""
        with torch.no_grad():
            query_BD = self._features(images_BCHW)[:, 0]
        similarity_BM = F.normalize(query_BD, dim=1) @ F.normalize(self.keys, dim=1).T
        top = similarity_BM.topk(self.config.method["top_k"], dim=1)
        prompts_BPD = self.prompts[top.indices].flatten(1, 2)
        out_BND = self._features(images_BCHW, prompts_BPD)
        return self.head(out_BND[:, : prompts_BPD.shape[1]].mean(1)), top.values.sum(1)

    def _batch(self, images: ImageSet, rows: list[int], transform: Any) -> Tensor:
        return torch.stack([transform(images.image(row)) for row in rows]).to(self.device)

    def train(self, images: ImageSet) -> None:
        """Learn the images as one task, train.epochs times; labels are class ids."""
        train, labels_N = self.config.train, torch.as_tensor(images.labels, device=self.device)
        lr = train.lr if train.lr_batch is None else train.lr * train.batch_size / train.lr_batch
        optimizer = torch.optim.Adam(self.parameters, lr=lr)
        mask_K = torch.ones(self.head.out_features, dtype=torch.bool, device=self.device)
        mask_K[labels_N.unique()] = False
        for _ in range(train.epochs):
            order = torch.randperm(len(images)).tolist()
            for start in range(0, len(order), train.batch_size):
                rows = order[start : start + train.batch_size]
                logits_BK, cosines_B = self._logits(self._batch(images, rows, self.train_transform))
                loss = F.cross_entropy(logits_BK.masked_fill(mask_K, -math.inf), labels_N[rows])
                loss = loss - self.config.method["pull"] * cosines_B.mean()
                optimizer.zero_grad()
                loss.backward()
                if train.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self.parameters, train.clip_norm)
                optimizer.step()

    @torch.no_grad()
    def evaluate(self, images: ImageSet) -> float:
        """Accuracy on the images, percent."""
        right, size = 0, self.config.eval.batch_size
        for start in range(0, len(images), size):
            rows = list(range(start, min(start + size, len(images))))
            logits_BK, _ = self._logits(self._batch(images, rows, self.eval_transform))
            right += int((logits_BK.argmax(1).cpu().numpy() == images.labels[rows]).sum())
        return 100 * right / len(images)
