"""`torch.library` operators (fake and autograd registered) and the choice of backend behind each.

The operators take tensors of one device, and of one dtype unless they say otherwise, and check nothing;
`hybrid_kernels.functional` is their checked, autocast-aware face.
"""

from hybrid_kernels.ops.block_rotation import block_rotate
from hybrid_kernels.ops.butterfly_rotation import butterfly_rotate
from hybrid_kernels.ops.cayley_neumann import cayley_neumann_packed
from hybrid_kernels.ops.cayley_transform import cayley, cayley_packed
from hybrid_kernels.ops.feature_scaling import scale_features
from hybrid_kernels.ops.householder import householder_factors, householder_factors_many
from hybrid_kernels.ops.householder_rotation import householder_rotate
from hybrid_kernels.ops.hybrid import hybrid_factors
from hybrid_kernels.ops.low_rank import low_rank_add, low_rank_linear
from hybrid_kernels.ops.low_rank_many import low_rank_linear_many
from hybrid_kernels.ops.projection import project
from hybrid_kernels.ops.rotated_low_rank import rotated_low_rank_linear

__all__ = [
    "block_rotate",
    "butterfly_rotate",
    "cayley",
    "cayley_neumann_packed",
    "cayley_packed",
    "householder_factors",
    "householder_factors_many",
    "householder_rotate",
    "hybrid_factors",
    "low_rank_add",
    "low_rank_linear",
    "low_rank_linear_many",
    "project",
    "rotated_low_rank_linear",
    "scale_features",
]
