"""What tests of several packages share."""

from collections.abc import Callable

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def assert_close_by_scale(
    actual: Tensor, reference64: Tensor, same_dtype_plain: Tensor, factor: float
) -> None:
    """‖actual − reference‖ ≤ factor · ‖plain − reference‖: no tolerance that has to be tuned to a scale.

    `reference64` is the float64 result, `same_dtype_plain` what plain PyTorch gives in the dtype of `actual`.
    Norms are Frobenius norms. Use factor 2 for results and 3 for gradients. Plain PyTorch can be exact by
    luck (a single term, small integers), so what rounding the reference to the dtype may cost is always
    granted: ε/2 · ‖reference‖. NaN and infinity fail.
    """
    assert reference64.dtype in (torch.float64, torch.complex128), reference64.dtype
    assert actual.dtype == same_dtype_plain.dtype, (actual.dtype, same_dtype_plain.dtype)
    assert actual.shape == reference64.shape == same_dtype_plain.shape, (actual.shape, reference64.shape)

    def error(result: Tensor) -> float:
        return torch.linalg.vector_norm(result.detach().to(reference64) - reference64).item()

    rounding = torch.finfo(actual.dtype).eps / 2 * torch.linalg.vector_norm(reference64).item()
    plain = error(same_dtype_plain)
    allowed = max(factor * plain, rounding)
    assert error(actual) <= allowed, (
        f"error {error(actual):.3e} > {allowed:.3e}; plain PyTorch {plain:.3e}, one rounding {rounding:.3e}"
    )


def wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64).requires_grad_()


INSTANCES = 8


def compare(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], draw: Callable[[], list[Tensor]]
) -> None:
    """``fast`` and ``plain`` (a reference function) on the same tensors; ``plain`` in float64 is the truth.

    Errors are taken over several draws together: on a handful of numbers plain PyTorch is exact by luck now and then.
    In double precision plain and truth are the same computation, so there agreement to 1e-7 is asked for.
    """
    columns = []
    for _ in range(INSTANCES):
        tensors = draw()
        leaves, plain_leaves = ([t.detach().requires_grad_() for t in tensors] for _ in range(2))
        truth_leaves = [wide(t) for t in tensors]
        y, y_plain, truth = fast(*leaves), plain(*plain_leaves), plain(*truth_leaves)
        y_plain = y_plain.to(y.dtype)
        dy = torch.randn_like(truth).to(y.dtype)
        mine = [y, *torch.autograd.grad(y, leaves, dy)]
        simple = [y_plain, *torch.autograd.grad(y_plain, plain_leaves, dy)]
        true = [truth, *torch.autograd.grad(truth, truth_leaves, dy.to(truth.dtype))]
        columns.append(list(zip(mine, true, simple, strict=True)))
    for index, column in enumerate(zip(*columns, strict=True)):
        mine, true, simple = (torch.stack(each) for each in zip(*column, strict=True))
        if true.dtype == mine.dtype:
            torch.testing.assert_close(mine, true)
        else:
            assert_close_by_scale(mine, true, simple, 2 if index == 0 else 3)


def make(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(DEVICE, dtype)
