"""Triton kernels of the hybrid adapter, one file per operation: formula, shapes, kernel, launcher.

The other modules import Triton; this one does not, so that `unavailable` can be asked anywhere.
"""

import torch


def unavailable() -> str | None:
    """Why no Triton kernel can run on this machine, or None when they can."""
    try:
        import triton
    except ImportError as error:
        return f"triton is not installed ({error})"
    if not (torch.cuda.is_available() or triton.knobs.runtime.interpret):
        return "there is no GPU, and TRITON_INTERPRET was not set before triton was imported"
    return None
