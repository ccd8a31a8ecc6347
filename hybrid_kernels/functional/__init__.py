"""The operations of `hybrid_kernels.reference`, fast: same names, same arguments, same results.

Each function checks its arguments, follows autocast, and runs the backend that `hybrid_kernels.ops.backend` chooses.
Activations (x, weight, bias) share one floating dtype and device. Factors and reflections may be wider, as PEFT keeps
them: they are factorised in float32, or in their own dtype if that is wider, and rounded to the activations' dtype for
the apply stage. Errors are ValueError for shapes and TypeError for dtypes and devices; they name the argument.
"""

from hybrid_kernels.functional.low_rank import (
    dropout_seed,
    low_rank_add,
    low_rank_linear,
    low_rank_linear_many,
    rotated_low_rank_linear,
    scale_features,
)
from hybrid_kernels.functional.reflections import (
    householder_factors,
    householder_factors_many,
    householder_rotate,
    hybrid_factors,
    hybrid_linear,
)
from hybrid_kernels.functional.rotations import (
    block_rotate,
    butterfly_rotate,
    cayley,
    cayley_neumann_packed,
    cayley_packed,
    cayley_packed_many,
)
from hybrid_kernels.functional.structured import structured_unitary

__all__ = [
    "block_rotate",
    "butterfly_rotate",
    "cayley",
    "cayley_neumann_packed",
    "cayley_packed",
    "cayley_packed_many",
    "dropout_seed",
    "householder_factors",
    "householder_factors_many",
    "householder_rotate",
    "hybrid_factors",
    "hybrid_linear",
    "low_rank_add",
    "low_rank_linear",
    "low_rank_linear_many",
    "rotated_low_rank_linear",
    "scale_features",
    "structured_unitary",
]
