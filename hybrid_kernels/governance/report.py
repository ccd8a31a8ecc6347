"""The report of a run for those who sign it: one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_kernels.governance.batch import Bounds

if TYPE_CHECKING:
    from hybrid_kernels.governance.thresholds import Histograms


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    histograms: Histograms | None,
    bounds: Bounds,
    what_if: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
) -> Path:
    """Write report.html, after the files of rows and before the manifest.

    Args:
        summary: of `Tally.to_json`.
        histograms: of the features, with the bounds that were drawn from them; None: no step measured any.
        bounds: what was held against the features.
        what_if: of `what_if.table`; None: not asked for.
        manifest: of `manifest.manifest`, before `write_manifest`.
    """
    raise NotImplementedError
