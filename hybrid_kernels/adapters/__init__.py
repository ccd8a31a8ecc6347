"""The hybrid adapter as a PEFT method, its initialisation, mixing, regulariser and export; the structured unitary
adapter of uRNNs; PEFT's own layers made fast.

Importing this package registers both methods with PEFT: do so before `PeftModel.from_pretrained` on their checkpoints.
"""

from hybrid_kernels.adapters.acceleration import AccelerateCallback, LayerReport, Report, accelerate, restore
from hybrid_kernels.adapters.config import HybridConfig
from hybrid_kernels.adapters.export import export_lora
from hybrid_kernels.adapters.initialization import initialize_gradient_aligned
from hybrid_kernels.adapters.mixing import GradientNormMixing, mixing_values
from hybrid_kernels.adapters.model import HybridModel
from hybrid_kernels.adapters.regularization import (
    norm_preservation_defects,
    norm_preservation_penalty,
    orthogonality_penalty,
)
from hybrid_kernels.adapters.structured import StructuredUnitaryConfig, StructuredUnitaryModel
from hybrid_kernels.adapters.trainer import HybridTrainer

__all__ = [
    "AccelerateCallback",
    "GradientNormMixing",
    "HybridConfig",
    "HybridModel",
    "HybridTrainer",
    "LayerReport",
    "Report",
    "StructuredUnitaryConfig",
    "StructuredUnitaryModel",
    "accelerate",
    "export_lora",
    "initialize_gradient_aligned",
    "mixing_values",
    "norm_preservation_defects",
    "norm_preservation_penalty",
    "orthogonality_penalty",
    "restore",
]
