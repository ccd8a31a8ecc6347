"""One self-contained HTML page of a result file: charts, tables of all records, what they were measured on."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import series
from .records import Record
from .series import Family

if TYPE_CHECKING:
    from .charts import Chart

NOTHING = "–"
#: Parts of a profile that a row shows.
PROFILED = 5


def page(records: Iterable[Record], charts: Sequence[Chart], sources: Sequence[str], older: int = 0) -> str:
    """HTML text. ``records`` and ``older`` are of `series.newest`, ``sources`` the names of the files they are from."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("hybrid_kernels.benchmarking"), jinja2.PackageLoader("hybrid_kernels")]
        ),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    families = series.families(records)
    places: dict[tuple[str, str], list[Family]] = {}
    for family in families:
        places.setdefault((family.dtype, series.machine_key(family.records[0])), []).append(family)
    return environment.get_template("bench.html").render(
        sources=sources,
        older=older,
        places=[_place(found, charts) for found in places.values()],
        failures=[
            (record["case"], record["pass"], record["side"], why)
            for family in families
            for record in family.records
            if (why := series.failure(record)) is not None
        ],
    )


def _place(families: Sequence[Family], charts: Sequence[Chart]) -> dict[str, Any]:
    """What was measured in one dtype on one machine."""
    first = families[0]
    records = [record for family in families for record in family.records]
    machine = first.records[0].get("machine") or {}
    groups: dict[tuple[str, str], list[Family]] = {}
    for family in families:
        groups.setdefault((family.kind, family.name), []).append(family)
    return {
        "title": series.place(first),
        "machine": ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None),
        "versions": _distinct(
            ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
            for record in records
            if record.get("versions")
        ),
        "commits": _distinct(str(record.get("commit") or "not recorded") for record in records),
        "dates": _distinct(sorted(str(record["date"])[:10] for record in records if record.get("date"))),
        "groups": [
            {
                "title": f"{kind}/{name}",
                "charts": [(_picture(chart), chart.text) for chart in charts if _of(chart, found)],
                "tables": [_table(family) for family in found],
            }
            for (kind, name), found in groups.items()
        ],
    }


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _of(chart: Chart, families: Sequence[Family]) -> bool:
    cases = {id(record) for family in families for record in family.records}
    return id(chart.family.records[0]) in cases


def _picture(chart: Chart) -> str:
    from hybrid_kernels.chart_style import svg

    return "data:image/svg+xml;base64," + base64.b64encode(svg(chart.figure()).encode()).decode()


def _table(family: Family) -> dict[str, Any]:
    """The records of a family as rows of text, with the columns that have something."""
    return {
        "title": series.PASSES[family.part],
        "floor": next((r["floor"] for r in family.records if r.get("floor")), None),
        "on_gpu": family.on_gpu,
        "notes": series.notes(family),
        "memory": any(record.get("peak_bytes") is not None for record in family.records),
        "cases": [
            {"shape": series.sizes(records[0]["shape"]), "rows": [_row(record) for record in records]}
            for records in family.cases.values()
        ],
    }


def _row(record: Record) -> dict[str, Any]:
    floor, graph, peak = record.get("floor"), record.get("graph") or {}, record.get("peak_bytes")
    share, parameters = record.get("roofline"), record.get("parameters")
    why = series.failure(record)
    profile = (record.get("profile") or [])[:PROFILED]
    return {
        "side": record["side"],
        "ours": record["side"] == record["ours"],
        "failed": why,
        "floor": NOTHING if floor is None else _ratio(record, floor),
        "over_ours": _ratio(record, record["ours"]),
        "time": NOTHING if why is not None else series.duration(record["median_seconds"]),
        "graph": series.duration(graph["median_seconds"]) if "median_seconds" in graph else NOTHING,
        "graph_note": graph.get("failed", ""),
        "roofline": f"{100 * share['share']:.0f} %, {share['bound']}" if share else NOTHING,
        "memory": NOTHING if peak is None else f"{series.number(peak / 2**20)} MiB",
        "parameters": NOTHING if parameters is None else f"{parameters:,}",
        "ran": ", ".join(record.get("ran") or ()),
        "declined": "; ".join(f"{name}: {reason}" for name, reason in (record.get("declined") or {}).items()),
        "profile": ", ".join(f"{p['name']} {100 * p['share']:.0f} % ({p['calls']} calls)" for p in profile),
    }


def _ratio(record: Record, base: str) -> str:
    found = series.ratio(record, base)
    if found is None:
        return NOTHING
    median, quartiles = found
    if quartiles is None:
        return "1"
    return f"{median:.3f} ({quartiles[0]:.3f} to {quartiles[1]:.3f})"
