"""Evaluation: quality, calibration and cross-language parity, what differs significantly, and the report of a run.

scipy and the report's libraries (matplotlib, jinja2, pydantic) are imported by the functions that use them. What
evaluates language models is imported from its own modules: `prompting` (classification), `generation`, `parallel`,
`translation`; orthographic variants are in `robustness`.
"""

from hybrid_kernels.evaluation.calibration import (
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from hybrid_kernels.evaluation.metrics import (
    classification_metrics,
    macro_average,
    per_language_metrics,
    run_metrics,
)
from hybrid_kernels.evaluation.parity import (
    parity,
    parity_by_group,
    parity_by_resource_class,
    parity_by_script,
)
from hybrid_kernels.evaluation.predictions import Predictions
from hybrid_kernels.evaluation.report import write_report
from hybrid_kernels.evaluation.significance import Bootstrap, Comparison, Interval, bootstrap

__all__ = [
    "Bootstrap",
    "Comparison",
    "Interval",
    "Predictions",
    "apply_temperature",
    "bootstrap",
    "classification_metrics",
    "expected_calibration_error",
    "fit_temperature",
    "macro_average",
    "parity",
    "parity_by_group",
    "parity_by_resource_class",
    "parity_by_script",
    "per_language_metrics",
    "reliability_bins",
    "run_metrics",
    "write_report",
]
