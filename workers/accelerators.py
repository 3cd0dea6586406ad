"""What accelerators can do at most, as their makers declare it: for a plan's times, which are estimates, and for the share of it that a run reaches.

Standard library only.

Sources: the data sheets of NVIDIA (H200, H100 SXM, A100, L40S, L4, A10, T4, V100), dense figures without sparsity. fp32 is what torch uses by
default, without TF32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    memory: int  # bytes
    fp32: float  # FLOP/s
    bf16: float  # FLOP/s


ACCELERATORS: Mapping[str, Accelerator] = {
    "H200": Accelerator(141 * 10**9, 67e12, 989e12),
    "H100": Accelerator(80 * 10**9, 67e12, 989e12),
    "A100-80GB": Accelerator(80 * 10**9, 19.5e12, 312e12),
    "A100-40GB": Accelerator(40 * 10**9, 19.5e12, 312e12),
    "L40S": Accelerator(48 * 10**9, 91.6e12, 362e12),
    "L4": Accelerator(24 * 10**9, 30.3e12, 121e12),
    "A10": Accelerator(24 * 10**9, 31.2e12, 125e12),
    "V100": Accelerator(32 * 10**9, 15.7e12, 15.7e12),
    "T4": Accelerator(16 * 10**9, 8.1e12, 8.1e12),
}
NO_BF16 = frozenset({"V100", "T4"})  # their bf16 above is what they do in its place
# Cards of other speed than the one that the product's name alone stands for; of the same data sheets: (fp32, bf16).
_VARIANTS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("H200", "NVL"): (60e12, 835e12),
    ("H100", "NVL"): (60e12, 835e12),
    ("H100", "PCIE"): (51e12, 756e12),
    ("V100", "PCIE"): (14e12, 14e12),
}
OPERATION_SECONDS = 1e-5  # that starting one operation takes, on any device: what small models spend their time with
CONTEXT_BYTES = 512 << 20  # of an accelerator's memory, for CUDA itself


@dataclass(frozen=True)
class Prices:
    """What an operator has declared. ``accelerator``: a name of the table, None: not declared."""

    accelerator: str | None = None
    accelerator_hour: float | None = None
    cpu_hour: float | None = None  # of one processor core
    cpu_flops: float = 5e10  # of one processor core, fp32
    efficiency: float = 0.4  # share of the declared peak that training reaches
    currency: str = "USD"


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of the whole device, dense; ``device_name`` as the driver gives it ("NVIDIA H100 80GB HBM3"). None: not known.

    A part of a device (MIG) can do less than the sheet says, and is not known.
    """
    words = frozenset(re.findall(r"[A-Z0-9]+", device_name.upper()))
    if "MIG" in words:
        return None
    known = next((name for name in ACCELERATORS if name.partition("-")[0] in words), None)
    if known is None:
        return None
    product, card = known.partition("-")[0], ACCELERATORS[known]
    variants = (peaks for (name, kind), peaks in _VARIANTS.items() if name == product and kind in words)
    fp32, bf16 = next(variants, (card.fp32, card.bf16))
    if precision != "bf16":
        return fp32
    return None if product in NO_BF16 else bf16
