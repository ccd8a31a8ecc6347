"""What tests of several packages share."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def assert_close_by_scale(
    actual: torch.Tensor, reference64: torch.Tensor, same_dtype_plain: torch.Tensor, factor: float
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

    def error(result: torch.Tensor) -> float:
        return torch.linalg.vector_norm(result.detach().to(reference64) - reference64).item()

    rounding = torch.finfo(actual.dtype).eps / 2 * torch.linalg.vector_norm(reference64).item()
    plain = error(same_dtype_plain)
    allowed = max(factor * plain, rounding)
    assert error(actual) <= allowed, (
        f"error {error(actual):.3e} > {allowed:.3e}; plain PyTorch {plain:.3e}, one rounding {rounding:.3e}"
    )
