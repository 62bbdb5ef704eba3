"""Choose the device and the precision to compute with, and copy tensors to the device."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from promptcl.config.schema import Config
from promptcl.errors import UserError
from promptcl.runtime import processes

BFLOAT16_FEATURES = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
"""Features of processors with products in bfloat16, the fastest first: Intel's matrix units, AVX-512 (AMD since Zen 4,
Intel), and those of ARM. With all but the first it is measured whether they are faster than float32."""
WINS = 1.2
"""bfloat16 is chosen where a product takes so many times less, since some of a step stays float32."""


def pick_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that exists here.

    Raises:
        UserError: unknown name, or a device this machine does not have; also as `processes.device_name`.
    """
    name = processes.device_name(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = name.partition(":")[0] in ("cuda", "mps")
        what = "torch finds no such device on this machine" if known else "expected cpu, cuda, cuda:N or mps"
        raise UserError(f"device={name} is not usable here: {what}; write device=auto") from error
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """What sums are kept in on `device`: float64, or float32 where there is no float64 (mps, of Apple's laptops)."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_dtypes(method: torch.nn.Module, device: torch.device) -> None:
    """Raise UserError if `method` keeps float64 sums and `device` does not support float64."""
    wide = widest_float(device) == torch.float64
    if not wide and any(tensor.dtype == torch.float64 for tensor in method.buffers()):
        raise UserError(
            f"device={device} has no float64, in which this method adds up and solves; write device=cpu, or take a "
            "method that is trained by steps alone, such as l2p, dualprompt or oneprompt"
        )


def pick_precision(name: str, device: torch.device) -> str:
    """Turn `auto` into `bf16` where the hardware is faster in bfloat16, else into `fp32`; other names stay."""
    return name if name != "auto" else ("bf16" if fast_bfloat16(device) else "fp32")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: matrix units are, of other features it is measured."""
    feature = bfloat16_feature(device)
    return feature is not None and (not _doubtful(feature) or bfloat16_gain(device) >= WINS)


def bfloat16_feature(device: torch.device) -> str | None:
    """What the hardware has for products in bfloat16, as it calls it (`amx_bf16`, say); None if it has nothing."""
    if device.type == "cuda":
        version = torch.cuda.get_device_capability(device)
        return "compute capability {}.{}".format(*version) if version >= (8, 0) else None
    if device.type != "cpu":
        return None
    known: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # missing in older torch
    return next((feature for feature in BFLOAT16_FEATURES if known().get(feature)), None)


def about_bfloat16(device: torch.device) -> str:
    """`none`, or the feature of the hardware, and how fast beside float32 if measured: `avx512_bf16: 1.9x`."""
    feature = bfloat16_feature(device)
    gain = f": {bfloat16_gain(device):.1f}x" if feature and _doubtful(feature) else ""
    return f"{feature or 'none'}{gain}"


def _doubtful(feature: str) -> bool:
    """Whether products by this feature can be slower than in float32, as AVX512-BF16 is on Intel and not on AMD."""
    return feature in BFLOAT16_FEATURES[1:]


@functools.cache
def bfloat16_gain(device: torch.device) -> float:
    """How many times as fast a product of a small ViT's size is in bfloat16 as in float32, measured in some 50 ms."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    with torch.inference_mode():
        for _ in range(7):  # in turn, and the best of each: others on the machine slow down both
            for kind, times in seconds.items():
                x_ND = torch.ones(512, 384, device=device, dtype=kind)
                weight_ED = torch.ones(1152, 384, device=device, dtype=kind)
                start = time.perf_counter()
                torch.nn.functional.linear(x_ND, weight_ED)
                times.append(time.perf_counter() - start)
    exact, rounded = (min(times) for times in seconds.values())
    return exact / rounded


def with_precision(config: Config, device: torch.device) -> Config:
    """Return `config` with `precision=auto` replaced by what it means on `device`."""
    precision = pick_precision(config.backbone.precision, device)
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"precision": precision})})


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to `device`; to a GPU from pinned memory, so that the CPU does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Context in which torch computes in bfloat16 for `bf16`; it changes nothing for `fp32`."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
