"""Every error names the argument, what it was and what it may be."""

from __future__ import annotations

import pytest
import torch

from hybrid_kernels import functional as F
from tests.support import DEVICE, make


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


X, W, A, B, U = make(4, 6), make(5, 6), make(2, 6), make(5, 2), make(6, 2)


SEED = torch.tensor(1, device=DEVICE)


P, V, ORDER = make(3, 3), make(2, 3, 2), torch.arange(3, device=DEVICE)


def many(x=X, w=W, bias=None, down=A, up=B):
    """Two layers, the first of them good."""
    return F.low_rank_linear_many(x, [W, w], [None, bias], [A, down], [B, up])


BAD = [  # call, error, what its message names
    (lambda: F.low_rank_linear(make(4, 7), W, None, A, B), ValueError, r"x has shape \(4, 7\).*must be 6"),
    (lambda: F.low_rank_linear(X, make(6), None, A, B), ValueError, r"weight has shape \(6,\)"),
    (lambda: F.low_rank_linear(X, W, make(6), A, B), ValueError, r"bias has shape \(6,\).*\(5,\)"),
    (lambda: F.low_rank_linear(X, W, None, make(2, 5), B), ValueError, r"down has shape \(2, 5\)"),
    (lambda: F.low_rank_linear(X, W, None, A, make(5, 3)), ValueError, r"up has shape \(5, 3\).*\(5, 2\)"),
    (lambda: F.low_rank_linear(X, W, None, make(0, 6), make(5, 0)), ValueError, "at least 1"),
    (lambda: F.low_rank_linear(X, W.double(), None, A, B), TypeError, "weight has dtype torch.float64 but x"),
    (lambda: F.low_rank_linear(X.long(), W.long(), None, A, B), TypeError, "x has dtype torch.int64"),
    (lambda: F.low_rank_linear(X, W, None, A.to("meta"), B), TypeError, "down is on meta but x is on"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 1.0, 2, SEED), ValueError, "dropout is 1.0.*below 1"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 3, SEED), ValueError, "dropped_rank is 3.*rank of down, 2"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 2), ValueError, "seed is None.*dropout_seed"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 2, make(1)), ValueError, "seed has dtype torch.float32"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 2, SEED.to("meta")), TypeError, "seed is on meta but x"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, 0.5, 1.0, -0.1, SEED), ValueError, "dropout is -0.1"),
    (lambda: F.low_rank_linear_many(X, [], [], [], []), ValueError, "weights has 0 elements.*at least one"),
    (lambda: F.low_rank_linear_many(X, [W, W], [None], [A] * 2, [B] * 2), ValueError, "biases has 1 .*weights, 2"),
    (lambda: F.low_rank_linear_many(X, [W, W], [None] * 2, [A], [B] * 2), ValueError, "downs has 1 elements"),
    (lambda: F.low_rank_linear_many(X, [W, W], [None] * 2, [A] * 2, [B]), ValueError, "ups has 1 elements"),
    (lambda: many(w=make(5, 7)), ValueError, r"weights\[1\] has shape \(5, 7\).*\(out_features, 6\)"),
    (lambda: many(x=make(4, 7)), ValueError, r"x has shape \(4, 7\).*must be 6, the in_features of weights\[0\]"),
    (lambda: many(bias=make(4)), ValueError, r"biases\[1\] has shape \(4,\).*\(5,\)"),
    (lambda: many(down=make(2, 5)), ValueError, r"downs\[1\] has shape \(2, 5\)"),
    (lambda: many(down=make(0, 6), up=make(5, 0)), ValueError, r"downs\[1\] .* at least 1"),
    (lambda: many(up=make(5, 3)), ValueError, r"ups\[1\] has shape \(5, 3\).*\(5, 2\)"),
    (lambda: many(w=W.double()), TypeError, r"weights\[1\] has dtype torch.float64 but x has"),
    (lambda: many(bias=make(5).double()), TypeError, r"biases\[1\] has dtype torch.float64 but x has"),
    (lambda: many(down=A.int()), TypeError, r"downs\[1\] has dtype torch.int32"),
    (lambda: many(up=B.to("meta")), TypeError, r"ups\[1\] is on meta but x is on"),
    (lambda: F.low_rank_add(make(3, 5), X, A, B), ValueError, r"base has shape \(3, 5\)"),
    (lambda: F.householder_rotate(X, make(5, 2)), ValueError, r"x has shape \(4, 6\).*must be 5"),
    (lambda: F.householder_rotate(X, make(6, 0)), ValueError, "between 1 and in_features"),
    (lambda: F.householder_factors(make(3, 4)), ValueError, "between 1 and in_features"),
    (lambda: F.householder_factors_many([make(4, 3), make(3, 4)]), ValueError, r"us\[1\] has shape \(3, 4\)"),
    (lambda: F.householder_factors_many([make(4, 3).int()]), TypeError, r"us\[0\] has dtype torch.int32"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, 1.5, 1.0), ValueError, "mixing is 1.5"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, torch.ones(2), 1.0), ValueError, r"mixing has shape \(2,\)"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, SEED.float().to("meta"), 1.0), TypeError, "mixing is on meta"),
    (lambda: F.hybrid_linear(X, W, None, A, B, make(7, 2), 0.5, 1.0), ValueError, r"u has shape \(7, 2\)"),
    (lambda: F.hybrid_linear(X, W, None, A.int(), B, U, 0.5, 1.0), TypeError, "lora_A has dtype torch.int32"),
    (lambda: F.cayley(make(3, 4)), ValueError, r"skew has shape \(3, 4\)"),
    (lambda: F.cayley(make(3, 3).int()), TypeError, "skew has dtype torch.int32"),
    (lambda: F.cayley_packed(make(2, 5), 4), ValueError, r"packed has shape \(2, 5\).*must be 6"),
    (lambda: F.cayley_packed(make(2, 0), 0), ValueError, "block_size is 0"),
    (lambda: F.cayley_packed_many([make(2, 6)], []), ValueError, "block_sizes has 0 elements.*packed, 1"),
    (lambda: F.cayley_packed_many([make(6), make(5)], [4, 4]), ValueError, r"packed\[1\] has shape \(5,\).*be 6"),
    (lambda: F.cayley_packed_many([make(0)], [0]), ValueError, r"block_sizes\[0\] is 0"),
    (lambda: F.cayley_packed_many([make(6).int()], [4]), TypeError, r"packed\[0\] has dtype torch.int32"),
    (lambda: F.rotated_low_rank_linear(X, make(2, 4, 4), W, None, A, B), ValueError, "must be 8, k·b of q"),
    (lambda: F.rotated_low_rank_linear(X, make(2, 3, 3), W, make(4), A, B), ValueError, r"bias has shape \(4,\)"),
    (lambda: F.block_rotate(X, make(2, 4, 4)), ValueError, r"x has shape \(4, 6\).*must be 8"),
    (lambda: F.block_rotate(X, make(2, 3)), ValueError, r"q has shape \(2, 3\)"),
    (lambda: F.block_rotate(X, make(2, 3, 3).to(torch.complex64)), TypeError, "q has dtype torch.complex64"),
    (lambda: F.structured_unitary(X.int(), P, V, ORDER), TypeError, "x has dtype torch.int32"),
    (lambda: F.structured_unitary(make(4, 3), P, V, ORDER), ValueError, r"x has shape \(4, 3\).*must be 6, n of"),
    (lambda: F.structured_unitary(X.to(torch.complex64), P, V, ORDER), ValueError, r"x has .*must be 3, n of"),
    (lambda: F.structured_unitary(X, make(2, 3), V, ORDER), ValueError, r"phases has shape \(2, 3\)"),
    (lambda: F.structured_unitary(X, make(3, 0), V, ORDER), ValueError, "phases .* at least 1"),
    (lambda: F.structured_unitary(X, P.int(), V, ORDER), TypeError, "phases has dtype torch.int32"),
    (lambda: F.structured_unitary(X, P, make(2, 3), ORDER), ValueError, r"reflections has shape \(2, 3\)"),
    (lambda: F.structured_unitary(X, P, V.to("meta"), ORDER), TypeError, "reflections is on meta but x"),
    (lambda: F.structured_unitary(X, P, V, ORDER[:2]), ValueError, r"permutation has .*shape \(2,\)"),
    (lambda: F.structured_unitary(X, P, V, ORDER.int()), ValueError, "permutation has dtype torch.int32"),
    (lambda: F.structured_unitary(X, P, V, ORDER.to("meta")), TypeError, "permutation is on meta but x"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_names_the_argument(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
