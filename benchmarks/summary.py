"""One table of all ratios of a GPU session, and the targets, met or missed.

    python benchmarks/summary.py [FOLDER]

Reads what `hybrid-kernels bench` wrote into the folder, benchmarks/results by default: of bench.cuda.bfloat16.jsonl and
bench.cuda.float32.jsonl ratios and targets, of bench.cpu.float32.jsonl the targets; also
tests.cuda.txt, validate.cuda.json and products.cuda.bfloat16.json, as far as they are there. Exits with 1 unless every
target was measured and met.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_kernels.benchmarking import records, series
from hybrid_kernels.cases.base import shape_name

Json = dict[str, Any]
CPU, GPU, GPU_FLOAT32 = "bench.cpu.float32.jsonl", "bench.cuda.bfloat16.jsonl", "bench.cuda.float32.jsonl"
FLOOR, HYBRID = "frozen layer", "hybrid 16 + 16"
CAYLEY, PEFT_SOLVE, ORTHOGONAL = "ours", "PEFT OFT, solve", "torch orthogonal, Cayley"
#: In place of a side: the time of every input read and every output written once, at the rate of a copy. A record has
#: it as the roofline, where memory and not arithmetic is what bounds.
MEMORY = "memory, once"
LINEAR = "layer/linear/m8192-k4096-n4096"
LAYERS = ("m512-k768-n768", "m1024-k2048-n2048", "m2048-k1024-n4096")
MODEL, MODEL_SHAPE = "model/llama-small", "layers4-batch1-tokens512"
#: Of `hybrid_kernels.accelerate`: how much faster than stock PEFT it has to be, and the most of its memory to take.
ACCELERATION = {
    "LoRA r=16": (1.0, 1.0),
    "DoRA r=16": (1.0, 1.0),
    "HRA r=16": (4.0, 0.7),
    "OFT b=32": (1.0, 1.0),
    "OFT b=32 exact": (1.0, 1.0),
    "BOFT b=8 m=2": (3.0, 0.7),
}


class Target(NamedTuple):
    """A bound for one side over another, in a case of a result file: of median times, or of ``quantity``.

    ``case`` is its kind, name and shape; ``graph`` says that the times from CUDA graphs are judged, not the eager ones.
    """

    file: str
    case: str
    side: str
    over: str
    bound: float
    at_most: bool = False
    part: str = "both"
    graph: bool = False
    quantity: str = "median_seconds"

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


def accelerate(prefix: str, method: str, shape: str) -> str:
    return f"{prefix}accelerate-{method.replace(' ', '-')}/{shape}"


TARGETS = [
    Target(GPU, LINEAR, HYBRID, FLOOR, 1.08, at_most=True),
    Target(GPU, LINEAR, "PEFT LoRA r=32", HYBRID, 1.2),
    Target(GPU, LINEAR, "PEFT HRA r=16", HYBRID, 10.0),
    Target(GPU, LINEAR, "torch.compile 16 + 16", HYBRID, 1.0),
    *(
        Target(file, f"operator/cayley_packed/{shape}", peer, CAYLEY, bound)
        for file, bounds in (
            (
                CPU,
                {
                    "blocks4096-b8": 6,
                    "blocks2048-b16": 8,
                    "blocks1024-b32": 6,
                    "blocks512-b64": 5,
                    "blocks128-b128": 4,
                    "blocks32-b256": 3,
                },
            ),
            (GPU_FLOAT32, {"blocks8192-b32": 15, "blocks2048-b64": 8, "blocks1024-b128": 4}),
        )
        for shape, bound in bounds.items()
        for peer in (PEFT_SOLVE, ORTHOGONAL)
    ),
    # What the device itself needs: at these sizes an eager forward is mostly the launch.
    *(
        Target(
            GPU_FLOAT32,
            f"operator/cayley_packed/{shape}",
            CAYLEY,
            MEMORY,
            3.0,
            at_most=True,
            part="forward",
            graph=True,
        )
        for shape in ("blocks8192-b32", "blocks2048-b16", "blocks4096-b8")
    ),
    *(
        Target(CPU, accelerate(prefix, method, shape), f"PEFT {method}", f"accelerated {method}", bound)
        for prefix, shapes in ((f"{MODEL}-", (MODEL_SHAPE,)), ("layer/", LAYERS))
        for shape in shapes
        for method, (bound, _) in ACCELERATION.items()
    ),
    *(
        Target(
            CPU,
            accelerate(f"{MODEL}-", method, MODEL_SHAPE),
            f"accelerated {method}",
            f"PEFT {method}",
            bound,
            at_most=True,
            quantity="peak_bytes",
        )
        for method, (_, bound) in ACCELERATION.items()
    ),
]

#: {(kind/name/shape, pass): {side: record}} of one file.
Cases = dict[tuple[str, str], dict[str, Json]]


def cases_of(found: list[Json]) -> Cases:
    result: Cases = {}
    for record in found:
        case = f"{record['kind']}/{record['name']}/{shape_name(record['shape'])}"
        result.setdefault((case, record["pass"]), {})[record["side"]] = record
    return result


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


class Ratio(NamedTuple):
    median: float
    quartiles: tuple[float, float] | None = None


def ratio(
    sides: Mapping[str, Json], side: str, over: str, graph: bool = False, quantity: str = "median_seconds"
) -> Ratio | None:
    """One side over another, eager or from its CUDA graph; None where one of both was not measured."""
    record = sides.get(side, {})
    if quantity != "median_seconds":
        mine, other = record.get(quantity), sides.get(over, {}).get(quantity)
        return None if mine is None or not other else Ratio(mine / other)
    timed = (record.get("graph") or {}) if graph else record
    if over == MEMORY:
        roofline = record.get("roofline") or {}
        # The share is that of the time from the graph, where there is one.
        captured = "median_seconds" in (record.get("graph") or {})
        known = graph and captured and roofline.get("bound") == "memory"
        return Ratio(1 / roofline["share"]) if known else None
    if side == over and "median_seconds" in timed:
        return Ratio(1.0)
    found = (timed.get("ratios") or {}).get(over)
    return None if found is None else Ratio(found["median"], tuple(found["quartiles"]))


def number(value: float | Ratio | None) -> str:
    value = value.median if isinstance(value, Ratio) else value
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def ratio_table(family: series.Family) -> list[str]:
    """Ratios to the floor, or else to ours, a column a case: eager / CUDA graph; of models also the peak MiB."""
    base, model = family.base, family.kind == "model"
    columns = [{record["side"]: record for record in case} for case in family.cases.values()]
    second = "peak MiB" if model else "CUDA graph"
    lines = [
        f"{family.kind}/{family.name}, {series.PASSES[family.part]}, {family.dtype}: × {base}, eager / {second}"
    ]
    shapes = [shape_name(case[0]["shape"]) for case in family.cases.values()]
    width = max(17, *(len(shape) + 2 for shape in shapes))
    lines.append(f"  {'':34}" + "".join(f"{shape:>{width}}" for shape in shapes))
    for side in dict.fromkeys(side for column in columns for side in column):
        cells = []
        for column in columns:
            peak = column.get(side, {}).get("peak_bytes")
            beside = peak and peak / 2**20 if model else ratio(column, side, base, graph=True)
            cells.append(f"{number(ratio(column, side, base))} / {number(beside)}")
        lines.append(f"  {side:34}" + "".join(f"{cell:>{width}}" for cell in cells))
    shares = [
        share
        for record in family.records
        if series.role(record) == "ours" and (share := record.get("roofline"))
    ]
    if shares:
        lines.append(
            f"  {'roofline share of ours':34}" + "".join(f"{s['share']:>{width}.0%}" for s in shares)
        )
    failed = {
        (record["side"], why) for record in family.records if (why := series.failure(record)) is not None
    }
    return lines + [f"  not measured: {side}: {why}" for side, why in sorted(failed)]


def slower_products(result: Json) -> list[str]:
    """Our sides that lose to ATen: the reason why a target is missed is among them, or in the launches."""
    lines = [
        f"products slower than ATen, {result['dtype']}; a copy moves {result['copy_gb_per_second']:.0f} GB/s"
    ]
    for shape in result["shapes"]:
        for entry in shape["products"]:
            for name, row in entry["sides"].items():
                over = row.get("ratio_to_aten")
                if over is not None and over > 1.02:
                    place = "x".join(str(shape[size]) for size in "mkn")
                    lines.append(
                        f"  {place:17}{entry['product']:28}{name:12}{over:6.2f} × ATen,"
                        f" {row['share_of_copy']:.0%} of the copy's rate"
                    )
    return lines if len(lines) > 1 else [*lines, "  none"]


def judged(files: Mapping[str, list[Json]]) -> tuple[list[str], bool]:
    """The targets with what was measured, and whether all are met."""
    lines, all_met = [], True
    for file, targets in itertools.groupby(TARGETS, lambda target: target.file):
        cases = cases_of(files[file])
        lines.append(f"targets, {file}")
        for target in targets:
            sides = cases.get((target.case, target.part), {})
            found = ratio(sides, target.side, target.over, target.graph, target.quantity)
            met = found is not None and target.met(found.median)
            all_met &= met
            verdict = "NOT MEASURED" if found is None else "met" if met else "MISSED"
            words = f"{target.side} / {target.over}"
            bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
            shown = "–" if found is None else f"{found.median:.3f}"
            beside = _beside(target, found, sides)
            place = target.case.split("/", 1)[1]
            lines.append(f"  {place:64}{words:52}{bound:>14}: {shown:>8}  {verdict}  {beside}")
    return lines, all_met


def _beside(target: Target, found: Ratio | None, sides: Mapping[str, Json]) -> str:
    parts = []
    if found is not None and found.quartiles is not None:
        low, high = found.quartiles
        noise = ", within noise" if low < target.bound < high else ""
        parts.append(f"quartiles {number(low)}–{number(high)}{noise}")
    if target.file != CPU and target.over != MEMORY:
        other = ratio(sides, target.side, target.over, not target.graph)
        parts.append(f"{'eager' if target.graph else 'graph'} {number(other)}")
    floor = sides.get(target.side, {}).get("floor")
    if target.quantity == "median_seconds" and floor not in (None, target.side, target.over):
        # The frozen side is the floor of any adapter, so that ratio is the ceiling of this one.
        parts.append(f"over {floor} {number(ratio(sides, target.side, floor))}")
    return f"({'; '.join(parts)})" if parts else ""


def tests_line(path: Path) -> str:
    """The last line of pytest that counts, or that there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "tests: not run"
    counts = [line.strip("= ") for line in text.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    cut = ", then stopped" if "KeyboardInterrupt" in text else ""
    return f"tests: {counts[-1]}{cut}" if counts else "tests: no count, see the file"


def validation_line(path: Path) -> str:
    """The verdict of `hybrid-kernels validate`."""
    found = read_json(path)
    return f"validation: {found['verdict'] if found else 'not run'}"


def machine_line(record: Json) -> str:
    versions = record.get("versions") or {}
    packages = ", ".join(f"{name} {versions.get(name)}" for name in ("torch", "triton", "peft"))
    return f"{(record.get('machine') or {}).get('gpu')}; {packages}; commit {record.get('commit')}"


def summary(folder: Path) -> tuple[list[str], bool]:
    files = {name: series.newest(records.read(folder / name))[0] for name in (CPU, GPU, GPU_FLOAT32)}
    on_gpu = [*files[GPU], *files[GPU_FLOAT32]]
    lines = [machine_line(on_gpu[0])] if on_gpu else []
    lines += [validation_line(folder / "validate.cuda.json"), tests_line(folder / "tests.cuda.txt")]
    for name in (GPU, GPU_FLOAT32):
        if not files[name]:
            lines += ["", f"{name}: not there"]
        for family in series.together(series.families(files[name])):
            lines += ["", *ratio_table(family)]
    products = "products.cuda.bfloat16.json"
    result = read_json(folder / products)
    lines += ["", *(slower_products(result) if result else [f"{products}: not there"])]
    targets, all_met = judged(files)
    return [*lines, "", *targets], all_met


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
    lines, all_met = summary(folder)
    print("\n".join(lines))
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
