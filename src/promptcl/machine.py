"""What the system says about this process. Imports no torch."""

from __future__ import annotations

import os
import time
from pathlib import Path


def resident_peak() -> int | None:
    """Bytes of the most memory that this process has had in RAM so far; None where the system does not say."""
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
