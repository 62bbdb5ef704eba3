"""What a result records about its origin (versions, machine, commit), and this process's memory and age."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

from promptcl.runtime.device import bfloat16_feature, fast_bfloat16


def resident_peak() -> int | None:
    """Peak RAM use of this process in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def process_age() -> float | None:
    """Seconds since this process was started; None where the system does not say."""
    stat = Path("/proc/self/stat")
    if not stat.is_file():
        return None
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def versions(device: torch.device | None = None) -> dict[str, str]:
    """Versions of the packages that compute results; machine, processor, threads, what `device` (None: the processor)
    has for bfloat16, and the GPU if it is one.
    """
    packages = {name: metadata.version(name) for name in ("promptcl", "torch", "torchvision", "timm", "numpy")}
    found = {**packages, "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    found |= {"processor": _processor(), "threads": str(torch.get_num_threads())}
    device = device or torch.device("cpu")
    slower = "" if fast_bfloat16(device) else ", slower than float32"
    feature = bfloat16_feature(device)  # without the measured ratio, which is another one each time
    found["bfloat16"] = f"{feature}{slower}" if feature else "none"
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    """Model name of the processor; on Linux platform.processor() gives the architecture at most."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, `+` appended if files differ; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        # An installed copy inside somebody else's repository must not report that repository's commit.
        tracked = subprocess.run(["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode != 0:
            return None
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
