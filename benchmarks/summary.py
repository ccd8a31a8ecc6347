"""One short table of all ratios of a GPU session, and the targets, met or missed.

    python benchmarks/summary.py [FOLDER]

Reads linear_layer.cuda.*.json, products.cuda.*.json and llama_step.cuda.json of the folder, benchmarks/results by
default, as far as they are there. Exits with 1 unless every target was measured and met.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]
FLOOR, HYBRID = "frozen layer", "hybrid 16 + 16"
TARGET_SHAPE = (8192, 4096, 4096)


class Target(NamedTuple):
    """A bound for the median of one side over that of another, on `TARGET_SHAPE` in bfloat16."""

    side: str
    over: str
    bound: float
    at_most: bool

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


TARGETS = [
    Target(HYBRID, FLOOR, 1.08, True),
    Target("PEFT LoRA r=32", HYBRID, 1.2, False),
    Target("PEFT HRA r=16", HYBRID, 10.0, False),
    Target("torch.compile 16 + 16", HYBRID, 1.0, False),
]


def read(path: Path) -> Json | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def median(row: Json | None, graph: bool = False) -> float | None:
    """Seconds of a side, eager or from its CUDA graph; None where it was not measured."""
    if row is not None and graph:
        row = row.get("graph")
    return None if row is None else row.get("median_seconds")


def ratio(sides: Json, side: str, over: str, graph: bool = False) -> float | None:
    upper, lower = (median(sides.get(name), graph) for name in (side, over))
    return None if upper is None or lower is None else upper / lower


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def layer_table(result: Json) -> list[str]:
    """Ratios to the frozen layer, eager / graph, a column a shape."""
    shapes = result["shapes"]
    names = list(dict.fromkeys(name for shape in shapes for name in shape["sides"]))
    lines = [f"× frozen layer, {result['dtype']}, eager / CUDA graph"]
    heads = [f"{shape['m']}x{shape['k']}x{shape['n']}" for shape in shapes]
    lines.append(f"  {'':24}" + "".join(f"{head:>17}" for head in heads))
    for name in names:
        cells = [
            " / ".join(number(ratio(shape["sides"], name, FLOOR, graph)) for graph in (False, True))
            for shape in shapes
        ]
        lines.append(f"  {name:24}" + "".join(f"{cell:>17}" for cell in cells))
    rates = [f"{shape['frozen_tflops']:.0f}" for shape in shapes]
    lines.append(f"  {'frozen layer, TFLOP/s':24}" + "".join(f"{rate:>17}" for rate in rates))
    failed = {
        (name, row["failed"]) for shape in shapes for name, row in shape["sides"].items() if "failed" in row
    }
    lines += [f"  not measured: {name}: {why}" for name, why in sorted(failed)]
    lines += [f"  not begun: {shape}" for shape in result.get("not_begun", [])]
    return lines


def model_table(result: Json) -> list[str]:
    model = result["model"]
    lines = [
        f"one step of {model['parameters'] / 1e9:.2f} G parameters, {model['batch']} x {model['tokens']} tokens, "
        f"{result['dtype']}: × frozen model, peak MiB above the models"
    ]
    for name, row in result["sides"].items():
        if "failed" in row:
            lines.append(f"  not measured: {name}: {row['failed']}")
            continue
        peak = row.get("peak_bytes")
        lines.append(
            f"  {name:24}{row['ratio_to_frozen']:8.3f}{'–' if peak is None else round(peak / 2**20):>10}"
        )
    return lines


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
                    where = f"{shape['m']}x{shape['k']}x{shape['n']}"
                    lines.append(
                        f"  {where:17}{entry['product']:28}{name:12}{over:6.2f} × ATen,"
                        f" {row['share_of_copy']:.0%} of the copy's rate"
                    )
    return lines if len(lines) > 1 else [*lines, "  none"]


def judged(result: Json | None) -> tuple[list[str], bool]:
    """The targets with what was measured, and whether all are met."""
    place = "x".join(map(str, TARGET_SHAPE))
    lines, all_met = [f"targets, bfloat16, {place}"], True
    shapes = [] if result is None else result["shapes"]
    sides = next(
        (shape["sides"] for shape in shapes if (shape["m"], shape["k"], shape["n"]) == TARGET_SHAPE), {}
    )
    for target in TARGETS:
        value = ratio(sides, target.side, target.over)
        met = value is not None and target.met(value)
        all_met &= met
        verdict = "NOT MEASURED" if value is None else "met" if met else "MISSED"
        words = f"{target.side} / {target.over}"
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        graph = number(ratio(sides, target.side, target.over, graph=True))
        shown = "–" if value is None else f"{value:.3f}"
        lines.append(f"  {words:42}{bound:>14}: {shown:>8}  {verdict}  (graph {graph})")
    return lines, all_met


def tests_line(path: Path) -> str:
    """The last line of pytest that counts, or that there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "tests: not run"
    counts = [line.strip("= ") for line in text.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    cut = ", then stopped" if "KeyboardInterrupt" in text else ""
    return f"tests: {counts[-1]}{cut}" if counts else "tests: no count, see the file"


def summary(folder: Path) -> tuple[list[str], bool]:
    layers = {
        dtype: read(folder / f"linear_layer.cuda.{dtype}.json")
        for dtype in ("bfloat16", "float16", "float32")
    }
    first = next((result for result in layers.values() if result), None)
    lines = []
    if first is not None:
        info = first["info"]
        gpus = ", ".join(gpu["name"] for gpu in info["gpus"]) or first["device"]
        packages = ", ".join(f"{name} {info['packages'].get(name)}" for name in ("triton", "peft"))
        lines.append(f"{gpus}; torch {info['torch']['version']}, {packages}; commit {first['commit']}")
    lines.append(tests_line(folder / "tests.cuda.txt"))
    for result in layers.values():
        if result:
            lines += ["", *layer_table(result)]
    for name, table in (
        ("llama_step.cuda.json", model_table),
        ("products.cuda.bfloat16.json", slower_products),
    ):
        result = read(folder / name)
        lines += ["", *(table(result) if result else [f"{name}: not there"])]
    targets, all_met = judged(layers["bfloat16"])
    return [*lines, "", *targets], all_met


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
    lines, all_met = summary(folder)
    print("\n".join(lines))
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
