"""The report of a run for those who sign it: one self-contained page."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from hybrid_kernels._files import write_file
from hybrid_kernels.governance import histogram
from hybrid_kernels.governance.batch import Bounds, Range
from hybrid_kernels.governance.manifest import REPORT, command
from hybrid_kernels.governance.policy_file import describe

if TYPE_CHECKING:
    from hybrid_kernels.governance.thresholds import Histograms

#: Steps whose examples are shown beside the row that they repeat.
_PAIRED = ("duplicates", "leakage")
#: Languages that have a strip in a drawing: those with the most rows.
MAX_STRIPS = 24
#: Words, and the characters of scripts that put nothing between them, are compared one by one.
_TOKEN = re.compile(
    r"\s+|[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)
_NOTHING = "–"


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    histograms: Histograms | None,
    bounds: Bounds,
    what_if: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
) -> Path:
    """Write report.html, after the files of rows and before the manifest; see `page` for the arguments."""
    write_file(folder / REPORT, page(summary, histograms, bounds, what_if, manifest))
    return folder / REPORT


def page(
    summary: Mapping[str, Any],
    histograms: Histograms | None,
    bounds: Bounds,
    what_if: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
) -> str:
    """HTML text.

    Args:
        summary: of `Tally.to_json`; with "duplicate_ids": {"ids", "rows", "first": a few of them} or None.
        histograms: of the features; None: no step measured any.
        bounds: what was held against the features.
        what_if: of `what_if.table`, with `what_if.duplicate_lines` as "duplicates" where these were looked for; None:
            it was not made.
        manifest: of `manifest.manifest`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("hybrid_kernels.governance"), jinja2.PackageLoader("hybrid_kernels")]
        ),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "share": share, "figure": figure}
    settings = list(_settings(manifest["policy"]))
    lines = what_if["lines"] if what_if else ()
    tried = [(name, list(found)) for name, found in groupby(lines, itemgetter("field"))]
    several = len(summary["by_source"]) > 1
    return environment.get_template("report.html").render(
        summary={"duplicate_ids": None, **summary},
        manifest=manifest,
        outcome=outcome(summary),
        settings=settings,
        changed=[setting for setting in settings if setting["changed"]],
        flow=list(_flow(summary)),
        reasons=_reasons(
            summary["by_step"],
            {step: found for step, found in summary["examples"].items() if step not in _PAIRED},
        ),
        flags=_reasons(
            {step: {"reasons": found, "alone": {}} for step, found in summary["flags"].items()},
            summary["flag_examples"],
        ),
        pairs={step: [_pair(example) for example in summary["examples"].get(step, ())] for step in _PAIRED},
        groups=list(_groups(summary["duplicate_groups"])),
        drawings=list(_drawings(histograms, bounds, manifest["columns"]["texts"])),
        what_if=what_if,
        tried=[(name, lines) for name, lines in tried if any(map(_matters, lines))],
        idle=[(name, lines) for name, lines in tried if not any(map(_matters, lines))],
        command=command(manifest),
        drawn=histogram,
        place=lambda row: _place(row, several or row["source"] not in summary["by_source"]),
    )


def _place(row: Mapping[str, Any], named: bool) -> str:
    """Where a row is: its id or its record, `named`: and its source."""
    where = row["id"] if row["id"] is not None else f"record {row['record']:,}"
    return f"{row['source']}, {where}" if named else where


def _matters(line: Mapping[str, Any]) -> bool:
    return bool(line["reasons"] or line["newly_rejected"] or line["newly_kept"])


def outcome(summary: Mapping[str, Any]) -> str:
    """What became of the rows, in a sentence or two."""
    rows, kept, rejected = summary["rows"], summary["kept"], summary["rejected"]
    if not rows:
        return "There were no rows."
    text = f"Of {_rows(rows)} {kept:,} are kept ({share(kept, rows)}) and {rejected:,} rejected"
    parts = [(step, part["rejected"]) for step, part in summary["by_step"].items() if part["rejected"]]
    named = (f"{n:,} that could not be read" if step == "input" else f"{n:,} by {step}" for step, n in parts)
    text += f": {_listed(named)}." if parts else "."
    if leaked := summary["by_step"].get("leakage", {}).get("rejected"):
        text += f" {_rows(leaked)} repeated a row of the evaluation data."
    if summary["flagged"]:
        text += f" Of the kept ones {summary['flagged']:,} are flagged."
    return text


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def _listed(parts: Iterator[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _settings(policy: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each field of a policy: name, value, default, description, whether it differs from the default."""
    for key in describe():
        section, _, name = key.path.partition(".")
        value = policy[section][name] if name else policy[section]
        if not isinstance(value, Mapping):
            yield {
                "name": key.path,
                "value": figure(value),
                "default": figure(key.default),
                "description": key.description,
                "changed": value != key.default,
            }


def _flow(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    left = summary["rows"]
    for step, part in summary["by_step"].items():
        yield {
            "step": step,
            "in": left,
            "out": left - part["rejected"],
            "alone": sum(part["alone"].values()),
            **{key: part[key] for key in ("rejected", "objected")},
        }
        left -= part["rejected"]


def _reasons(
    by_step: Mapping[str, Mapping[str, Any]], examples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Step → its reasons, each with its counts and examples."""
    return {
        step: [
            {
                "reason": reason,
                "rows": rows,
                "alone": part["alone"].get(reason, 0),
                "examples": [found for found in examples.get(step, ()) if found["reason"] == reason],
            }
            for reason, rows in part["reasons"].items()
        ]
        for step, part in by_step.items()
        if part["reasons"]
    }


def _groups(sizes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Groups of duplicates by their rows, larger ones in ranges."""
    for low, high in ((2, 2), (3, 3), (4, 4), (5, 9), (10, 99), (100, 999), (1000, None)):
        found = {int(size): n for size, n in sizes.items() if low <= int(size) <= (high or int(size))}
        if found:
            yield {
                "size": f"{low:,}"
                if low == high
                else f"{low:,} to {high:,}"
                if high
                else f"{low:,} and more",
                "groups": sum(found.values()),
                "rejected": sum((size - 1) * n for size, n in found.items()),
            }


def _pair(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with each of its texts beside the other row's, what only one of them has marked."""
    other = example["other"] or {"texts": [], "source": "", "record": None, "id": None}
    sides = [
        _marked(mine, theirs or "") for mine, theirs in zip(example["texts"], other["texts"], strict=False)
    ]
    mine, theirs = zip(*sides, strict=True) if sides else (example["texts"], ())
    return {**example, "other": other, "mine": mine, "theirs": theirs}


def _marked(first: str, second: str) -> tuple[Markup, Markup]:
    a, b = _TOKEN.findall(first), _TOKEN.findall(second)
    sides = [Markup(""), Markup("")]
    for tag, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, tokens in enumerate((a[a1:a2], b[b1:b2])):
            text = escape("".join(tokens))
            sides[side] += (
                text if tag == "equal" or not tokens else Markup("<mark>") + text + Markup("</mark>")
            )
    return sides[0], sides[1]


def _drawings(
    histograms: Histograms | None, bounds: Bounds, texts: Sequence[str]
) -> Iterator[histogram.Drawing]:
    """Of the features that any row has; one of a text is named after its column."""
    if histograms is None:
        return
    from hybrid_kernels.governance.thresholds import FEATURES

    for feature in FEATURES:
        by_language = {
            code: n for (name, code), n in histograms.counts.items() if name == feature and n.any()
        }
        if not by_language:
            continue
        most = sorted(by_language, key=lambda code: (-by_language[code].sum(), code))[:MAX_STRIPS]
        counts = {code: by_language[code] for code in sorted(most)}
        limits = {code: bounds.get((feature, code), bounds.get((feature, None), Range())) for code in counts}
        found, text = FEATURES[feature], feature.rpartition("_")[2]
        label = f"{found.label}, {texts[int(text)]}" if text.isdigit() else found.label
        yield histogram.draw(feature, label, found.edges, counts, limits)


def count(number: int) -> str:
    return f"{number:,}"


def share(part: int, whole: int) -> str:
    """ "4.9 %"; of what is not nothing never "0 %", of what is not all never "100 %"."""
    if not whole:
        return _NOTHING
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if 99.99 < percent < 100:
        return "> 99.99 %"
    return f"{percent:.3g} %" if percent < 99 else f"{percent:.4g} %"


def figure(value: Any) -> str:
    """A value of a policy, a score or a bound."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return histogram.figure(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
