"""Modules: drop-in layers over the operators, and steps along the unitary matrices. They know nothing of PEFT."""

from hybrid_kernels.nn.adapter import HybridAdapter
from hybrid_kernels.nn.hybrid_linear import HybridLinear
from hybrid_kernels.nn.manifold import cayley_update, enable_unitary_groups, unitary_parameter_groups
from hybrid_kernels.nn.rotations import CayleyRotation, HouseholderRotation
from hybrid_kernels.nn.unitary import FullUnitary, StructuredUnitary

__all__ = [
    "CayleyRotation",
    "FullUnitary",
    "HouseholderRotation",
    "HybridAdapter",
    "HybridLinear",
    "StructuredUnitary",
    "cayley_update",
    "enable_unitary_groups",
    "unitary_parameter_groups",
]
