"""Triton kernels of the hybrid adapter, one file per operation: formula, shapes, kernel, launcher.

The modules of the kernels import Triton; this one does not, so that `unavailable` can be asked anywhere.
"""

from typing import NamedTuple

import torch


class Dropout(NamedTuple):
    """Low-rank dropout: the first ``dropped_rank`` rows of down see x with elements dropped, of the probability
    ``threshold`` · 2⁻¹⁶ and by the mask of ``seed``, a 0-dim int64 tensor. None stands for no dropout."""

    dropped_rank: int
    threshold: int
    seed: torch.Tensor


def unavailable() -> str | None:
    """Why no Triton kernel can run on this machine, or None when they can."""
    try:
        import triton
    except ImportError as error:
        return f"triton is not installed ({error})"
    if not (torch.cuda.is_available() or triton.knobs.runtime.interpret):
        return "there is no GPU, and TRITON_INTERPRET was not set before triton was imported"
    return None
