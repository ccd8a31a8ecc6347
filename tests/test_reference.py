"""The reference against definitions that are not its own: dense matrices, known values, group properties."""

import torch

from hybrid_kernels import reference

torch.manual_seed(0)


def dense_reflections(u: torch.Tensor) -> torch.Tensor:
    """H₁…Hₙ as a product of dense matrices."""
    h = torch.eye(u.shape[0], dtype=u.dtype)
    for column in u.T:
        if column.any():
            h = h @ (
                torch.eye(u.shape[0], dtype=u.dtype) - 2 * torch.outer(column, column) / (column @ column)
            )
    return h


def test_householder_rotate_is_the_dense_product() -> None:
    x, u = torch.randn(3, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    h = dense_reflections(u)
    torch.testing.assert_close(reference.householder_rotate(x, u), x @ h.T)
    torch.testing.assert_close(reference.householder_rotate(x, u, transpose=True), x @ h)


def test_householder_factors_make_the_dense_product() -> None:
    u = torch.randn(7, 5, dtype=torch.float64)
    v, t = reference.householder_factors(u)
    torch.testing.assert_close(torch.eye(7, dtype=torch.float64) - v @ t @ v.T, dense_reflections(u))
    assert torch.equal(t, torch.triu(t))


def test_zero_column_is_no_reflection_and_has_zero_gradient() -> None:
    u = torch.randn(6, 3, dtype=torch.float64)
    u[:, 1] = 0
    u.requires_grad_()
    x = torch.randn(2, 6, dtype=torch.float64)
    y = reference.householder_rotate(x, u)
    torch.testing.assert_close(y, reference.householder_rotate(x, u[:, [0, 2]]))
    (gradient,) = torch.autograd.grad(y.sin().sum(), u)
    assert torch.equal(gradient[:, 1], torch.zeros(6, dtype=torch.float64))
    assert gradient[:, 0].any()


def test_hybrid_linear_at_the_ends_of_mixing() -> None:
    x, w, b = torch.randn(4, 6).double(), torch.randn(5, 6).double(), torch.randn(5).double()
    lora_a, lora_b, u = torch.randn(2, 6).double(), torch.randn(5, 2).double(), torch.randn(6, 4).double()
    lora = reference.hybrid_linear(x, w, b, lora_a, lora_b, u, 1.0, 0.5)
    torch.testing.assert_close(lora, x @ w.T + b + 0.5 * x @ lora_a.T @ lora_b.T)
    rotated = reference.hybrid_linear(x, w, b, lora_a, lora_b, u, 0.0, 0.5)
    torch.testing.assert_close(rotated, x @ (w @ dense_reflections(u)).T + b)


def test_cayley_of_a_plane_rotation() -> None:
    """A = [[0, t], [−t, 0]] gives the rotation by −2·atan(t): Q[0, 1] = −sin(2·atan t)."""
    t = torch.tensor(0.7, dtype=torch.float64)
    q = reference.cayley_packed(t.view(1), 2)
    angle = 2 * torch.atan(t)
    expected = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)]).view(
        2, 2
    )
    torch.testing.assert_close(q, expected)


def test_cayley_is_unitary_and_of_determinant_one() -> None:
    for dtype in (torch.float64, torch.complex128):
        q = reference.cayley(torch.randn(3, 5, 5, dtype=dtype))
        torch.testing.assert_close(q @ q.mH, torch.eye(5, dtype=dtype).expand(3, 5, 5))
    torch.testing.assert_close(
        torch.linalg.det(reference.cayley_packed(torch.randn(15).double(), 6)), torch.tensor(1.0).double()
    )


def test_structured_unitary_of_each_part() -> None:
    """One factor of D₃ R₂ F⁻¹ D₂ Π R₁ F D₁ at a time, the others the identity or cancelling, on single vectors."""
    n, h = 6, torch.randn(6, dtype=torch.complex128)
    still, none, order = torch.zeros(3, n).double(), torch.zeros(2, n, 2).double(), torch.arange(n)
    vector, turn = torch.randn(n, 2).double(), torch.randn(n).double()
    v, phase = torch.view_as_complex(vector), torch.exp(1j * turn)

    def with_row(zeros: torch.Tensor, index: int, value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value if i == index else zero for i, zero in enumerate(zeros)])

    def reflected(h: torch.Tensor) -> torch.Tensor:
        return h - 2 * v * torch.vdot(v, h) / torch.vdot(v, v)

    fft, ifft = torch.fft.fft, torch.fft.ifft
    shuffle = torch.tensor([3, 0, 1, 5, 4, 2])
    cases = [
        (still, none, order, h),
        (with_row(still, 0, turn), none, order, phase * h),
        (with_row(still, 1, turn), none, order, ifft(phase * fft(h))),
        (with_row(still, 2, turn), with_row(none, 1, vector), order, phase * reflected(h)),
        (still, with_row(none, 0, vector), order, ifft(reflected(fft(h)))),
        (with_row(still, 0, turn), with_row(none, 1, vector), order, reflected(phase * h)),
        (with_row(still, 1, turn), none, shuffle, ifft(phase * fft(h)[shuffle])),
        (still, with_row(none, 0, vector), shuffle, ifft(reflected(fft(h))[shuffle])),
    ]
    for phases, reflections, permutation, expected in cases:
        result = reference.structured_unitary(h, phases, reflections, permutation)
        torch.testing.assert_close(result, expected)
        pairs = reference.structured_unitary(
            torch.view_as_real(h).flatten(), phases, reflections, permutation
        )
        torch.testing.assert_close(pairs, torch.view_as_real(expected).flatten())


def test_block_rotate_turns_each_run_of_features() -> None:
    x, q = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    y = reference.block_rotate(x, q)
    torch.testing.assert_close(y[..., :3], x[..., :3] @ q[0])
    torch.testing.assert_close(y[..., 3:], x[..., 3:] @ q[1])
