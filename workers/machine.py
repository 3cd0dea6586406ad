"""What of a machine and its libraries decides how numbers are rounded: by it one understands why a run done again differs in its last bits."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import numpy as np
import torch


def machine() -> dict[str, str]:
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # those that torch's own kernels use
        "torch": str(torch.__version__),  # by itself of a class of torch, which the control plane has not
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
