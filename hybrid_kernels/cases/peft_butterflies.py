"""A stand-in in plain PyTorch for the CUDA extension with which PEFT makes BOFT's block-diagonal matrices.

Without the extension PEFT sets the number of butterfly factors to 1. The stand-in does what the extension does, a copy
of the blocks into zeros and back, and costs less than `torch.block_diag`, which PEFT itself takes for one factor.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor


def _diagonal(matrices: Tensor, k: int, b: int) -> Tensor:
    """The blocks on the diagonals of matrices (n, k·b, k·b), as a view (n, b, b, k)."""
    return matrices.view(-1, k, b, k, b).diagonal(dim1=1, dim2=3)


def block_diagonal(blocks: Tensor) -> list[Tensor]:
    n, k, b, _ = blocks.shape
    matrices = blocks.new_zeros(n, k * b, k * b)
    _diagonal(matrices, k, b).copy_(blocks.permute(0, 2, 3, 1))
    return [matrices]


def blocks_of(gradient: Tensor, blocks: Tensor) -> list[Tensor]:
    _, k, b, _ = blocks.shape
    return [_diagonal(gradient.contiguous(), k, b).permute(0, 3, 1, 2).contiguous()]


def allow_butterflies_in_peft() -> None:
    """Put the stand-in where PEFT keeps the extension, for the whole process."""
    from peft.tuners.boft import layer as boft

    extension = SimpleNamespace(forward=block_diagonal, backward=blocks_of)
    boft._FBD_CUDA = extension  # type: ignore[assignment]
