"""Choose the device and the precision to compute with, and copy tensors to the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from promptcl.config.schema import Config
from promptcl.errors import UserError
from promptcl.runtime import processes


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


def check_dtypes(method: torch.nn.Module, device: torch.device) -> None:
    """Raise UserError if `method` keeps float64 sums and `device` does not support float64."""
    if device.type == "mps" and any(tensor.dtype == torch.float64 for tensor in method.buffers()):
        raise UserError(f"device={device} has no float64, which this method needs for its sums; write device=cpu")


def pick_precision(name: str, device: torch.device) -> str:
    """Turn `auto` into `bf16` where the hardware has matrix units for it, else into `fp32`; other names stay."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        known: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # missing in older torch
        fast = device.type == "cpu" and bool(known().get("amx_bf16", False))
    return "bf16" if fast else "fp32"


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
