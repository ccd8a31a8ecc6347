"""What governance costs, and that it decides the same wherever it runs: sections of benchmarks/governance.py."""

from __future__ import annotations

import os
import shutil

from governance_noise import plant, recombined
from governance_runs import Bench, Json, Target, contents, govern, killed, write_rows

CLAIMED = ("--language-column", "language")


def scale(bench: Bench) -> tuple[Json, list[Target]]:
    sizes = (10_000, 30_000) if bench.quick else (10_000, 100_000, 1_000_000)
    result: Json = {"workers": bench.workers, "sizes": {}}
    cores = min(bench.workers, os.cpu_count() or 1)
    for size in sizes:
        path = write_rows(
            bench.work / f"scale-{size}.jsonl",
            (row.record() for row in recombined(bench.corpus, size, bench.seed)),
        )
        run = bench.run_files(f"scale-{size}", [path], *CLAIMED, read=False)
        cost = {name: 1e6 * part["seconds"] / size for name, part in run.summary["cost"].items()}
        result["sizes"][str(size)] = {
            "megabytes": path.stat().st_size / 1e6,
            "kept": run.summary["kept"],
            "seconds": run.seconds,
            "rows_per_second_per_core": size / run.seconds / cores,
            "processor_microseconds_per_row": sum(cost.values()),
            "microseconds_per_row": cost,
            "stages": run.summary["stages"],
            "peak_rss_gib": run.peak_rss / 2**30,
            "peak_pss_gib": run.peak_pss / 2**30,
        }
        shutil.rmtree(run.out)
    largest, before = (result["sizes"][str(size)] for size in reversed(sizes[-2:]))
    growth = largest["seconds"] / before["seconds"] / (sizes[-1] / sizes[-2])
    result["growth"] = growth
    return result, [
        Target(f"rows a second and core, {sizes[-1]:,} rows", largest["rows_per_second_per_core"], 2500),
        Target(
            f"seconds a row at {sizes[-1]:,} rows over those at {sizes[-2]:,}", growth, 1.05, at_most=True
        ),
        Target(f"peak memory at {sizes[-1]:,} rows, GiB (RSS)", largest["peak_rss_gib"], 4.0, at_most=True),
    ]


def engines(bench: Bench) -> tuple[Json, list[Target]]:
    rows, evaluation = plant(bench.corpus, 4 if bench.quick else 30, bench.seed)
    held_out = write_rows(bench.work / "engines-evaluation.jsonl", (row.record() for row in evaluation))
    more = list(recombined(bench.corpus, 3_000 if bench.quick else 20_000, bench.seed))
    inputs = [
        write_rows(bench.work / f"{name}.jsonl", (row.record() for row in part))
        for name, part in (("planted", rows), ("recombined", more))
    ]
    policy = bench.policy("engines", {"personal_data": {"enabled": True}, "repair": True, "annotate": True})
    result: Json = {"rows": len(rows) + len(more)}
    found = {}
    for engine in ("local", "ray"):
        options = (*CLAIMED, *policy, "--evaluation", str(held_out), "--engine", engine)
        run = bench.run_files(f"engine-{engine}", inputs, *options, read=False)
        found[engine] = contents(run.out)
        result[engine] = {
            "kept": run.summary["kept"],
            "seconds": run.seconds,
            "peak_rss_gib": run.peak_rss / 2**30,
        }
    return _compared(result, found["local"], found["ray"], "both engines decide the same")


def kill(bench: Bench) -> tuple[Json, list[Target]]:
    rows = list(recombined(bench.corpus, 5_000 if bench.quick else 60_000, bench.seed))
    path = write_rows(bench.work / "killed.jsonl", (row.record() for row in rows))
    whole = bench.run_files("kill-undisturbed", [path], *CLAIMED, read=False)
    out = bench.work / "kill"
    shutil.rmtree(out, ignore_errors=True)
    options = bench.common(*CLAIMED)
    times = [
        killed([path], out, bench.languages, options, whole.seconds, bench.seed + i)
        for i in range(4 if bench.quick else 10)
    ]
    resumed = govern([path], out, bench.languages, *options, read=False)
    result = {
        "rows": len(rows),
        "undisturbed": whole.seconds,
        "killed_after": times,
        "resumed": resumed.seconds,
    }
    return _compared(result, contents(whole.out), contents(out), "killed and resumed is as undisturbed")


def _compared(result: Json, a: dict[str, bytes], b: dict[str, bytes], name: str) -> tuple[Json, list[Target]]:
    different = sorted(file for file in a.keys() | b.keys() if a.get(file) != b.get(file))
    result |= {"files": len(a), "different": different}
    return result, [Target(name, float(not different), 1.0)]
