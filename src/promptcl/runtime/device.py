"""Choose the device and the precision to compute with, and copy tensors to the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from promptcl.config.schema import Config
from promptcl.errors import UserError
from promptcl.runtime import processes

BFLOAT16_FEATURES = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
"""Features of processors with products in bfloat16, the fastest first: Intel's matrix units, AVX-512 (AMD since Zen 4,
Intel's Cooper Lake), and those of ARM."""


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
    """Turn `auto` into `bf16` where the hardware computes in bfloat16 itself, else into `fp32`; other names stay."""
    return name if name != "auto" else ("bf16" if fast_bfloat16(device) else "fp32")


def fast_bfloat16(device: torch.device) -> str | None:
    """What the hardware has for products in bfloat16, as it calls it (`amx_bf16`, say); None if it has nothing."""
    if device.type == "cuda":
        version = torch.cuda.get_device_capability(device)
        return "compute capability {}.{}".format(*version) if version >= (8, 0) else None
    if device.type != "cpu":
        return None
    known: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # missing in older torch
    return next((feature for feature in BFLOAT16_FEATURES if known().get(feature)), None)


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
