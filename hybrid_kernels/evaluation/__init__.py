"""Evaluation: accuracy, calibration and cross-language parity, and the report of a run.

The report's libraries (matplotlib, jinja2, pydantic) are imported when `write_report` is called. What evaluates
language models is imported from its own modules: `prompting` (classification), `generation`, `parallel`, `translation`.
"""

from hybrid_kernels.evaluation.metrics import (
    classification_metrics,
    macro_average,
    parity,
    per_language_metrics,
    reliability_bins,
)
from hybrid_kernels.evaluation.report import write_report

__all__ = [
    "classification_metrics",
    "macro_average",
    "parity",
    "per_language_metrics",
    "reliability_bins",
    "write_report",
]
