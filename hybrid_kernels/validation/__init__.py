"""Every operator against the float64 reference, on this machine: what `hybrid-kernels validate` does."""

from hybrid_kernels.validation.run import Result, validate

__all__ = ["Result", "validate"]
