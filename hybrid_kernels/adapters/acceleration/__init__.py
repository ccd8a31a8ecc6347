"""`hybrid_kernels.accelerate`: existing PEFT layers on this package's operators."""

from hybrid_kernels.adapters.acceleration.entry import accelerate, restore
from hybrid_kernels.adapters.acceleration.report import LayerReport, Report
from hybrid_kernels.adapters.acceleration.trainer import AccelerateCallback

__all__ = ["AccelerateCallback", "LayerReport", "Report", "accelerate", "restore"]
