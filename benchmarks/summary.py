"""One short table of all ratios of a GPU session, and the targets, met or missed.

    python benchmarks/summary.py [FOLDER]

Reads linear_layer.cuda.*.json, cayley.cuda.float32.json, products.cuda.*.json, llama_step.cuda.json and
acceleration_*.cuda.bfloat16.json of the folder, benchmarks/results by default, as far as they are there, and of
cayley.cpu.float32.json and acceleration_*.cpu.float32.json the targets. Exits with 1 unless every target was measured
and met.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]
FLOOR, HYBRID = "frozen layer", "hybrid 16 + 16"
CAYLEY, PEFT_SOLVE, ORTHOGONAL, MEMORY = "ours", "PEFT OFT, solve", "torch orthogonal, Cayley", "memory, once"
LAYER = ("linear_layer.cuda.bfloat16.json", "8192x4096x4096")
CAYLEY_CPU, CAYLEY_GPU = "cayley.cpu.float32.json", "cayley.cuda.float32.json"
STEP, LAYERS, MEMORY_FILE = (f"acceleration_{part}.cpu.float32.json" for part in ("step", "layers", "memory"))
QUANTITIES = ("median_seconds", "peak_bytes")
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
    """A bound for the median of one side over that of another, on one shape of a result file.

    ``part`` names the shape's table; ``graph`` says that the times from CUDA graphs are judged, not the eager ones;
    ``quantity`` is what is judged where it is no time; ``quartiles`` names those of the ratio in the side's row.
    """

    file: str
    shape: str
    side: str
    over: str
    bound: float
    at_most: bool = False
    part: str = "sides"
    graph: bool = False
    quantity: str = "median_seconds"
    quartiles: str | None = None

    def met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


TARGETS = [
    Target(*LAYER, HYBRID, FLOOR, 1.08, at_most=True),
    Target(*LAYER, "PEFT LoRA r=32", HYBRID, 1.2),
    Target(*LAYER, "PEFT HRA r=16", HYBRID, 10.0),
    Target(*LAYER, "torch.compile 16 + 16", HYBRID, 1.0),
    *(
        Target(file, shape, peer, CAYLEY, bound)
        for file, bounds in (
            (
                CAYLEY_CPU,
                {"4096x8": 6, "2048x16": 8, "1024x32": 6, "512x64": 5, "128x128": 4, "32x256": 3},
            ),
            (CAYLEY_GPU, {"8192x32": 15, "2048x64": 8, "1024x128": 4}),
        )
        for shape, bound in bounds.items()
        for peer in (PEFT_SOLVE, ORTHOGONAL)
    ),
    # What the device itself needs: at these sizes an eager forward is mostly the launch.
    *(
        Target(CAYLEY_GPU, shape, CAYLEY, MEMORY, 3.0, at_most=True, part="forward", graph=True)
        for shape in ("8192x32", "2048x16", "4096x8")
    ),
    *(
        Target(
            file,
            shape,
            f"PEFT {method}",
            f"accelerated {method}",
            bound,
            quartiles="quartiles_to_accelerated",
        )
        for file, shapes in (
            (STEP, ("llama",)),
            (LAYERS, ("512x768x768", "1024x2048x2048", "2048x1024x4096")),
        )
        for shape in shapes
        for method, (bound, _) in ACCELERATION.items()
    ),
    *(
        Target(
            MEMORY_FILE,
            "llama",
            f"accelerated {method}",
            f"PEFT {method}",
            bound,
            at_most=True,
            quantity="peak_bytes",
        )
        for method, (_, bound) in ACCELERATION.items()
    ),
]


def read(path: Path) -> Json | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def figure(row: Json | None, graph: bool = False, quantity: str = "median_seconds") -> float | None:
    """Seconds of a side, eager or from its CUDA graph, or another quantity; None where it was not measured."""
    if row is not None and graph:
        row = row.get("graph")
    return None if row is None else row.get(quantity)


def ratio(
    sides: Json, side: str, over: str, graph: bool = False, quantity: str = "median_seconds"
) -> float | None:
    upper, lower = (figure(sides.get(name), graph, quantity) for name in (side, over))
    return None if upper is None or lower is None else upper / lower


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def place(shape: Json) -> str:
    if "model" in shape:
        return shape["model"]
    return "x".join(str(shape[name]) for name in ("m", "k", "n", "blocks", "block_size") if name in shape)


def ratio_table(result: Json, over: str) -> list[str]:
    """Ratios to the side ``over``, eager / graph, a column a shape."""
    shapes = result["shapes"]
    names = list(dict.fromkeys(name for shape in shapes for name in shape["sides"]))
    lines = [f"× {over}, {result['dtype']}, eager / CUDA graph"]
    lines.append(f"  {'':30}" + "".join(f"{place(shape):>17}" for shape in shapes))
    for name in names:
        cells = [
            " / ".join(number(ratio(shape["sides"], name, over, graph)) for graph in (False, True))
            for shape in shapes
        ]
        lines.append(f"  {name:30}" + "".join(f"{cell:>17}" for cell in cells))
    if over == FLOOR:
        rates = [f"{shape['frozen_tflops']:.0f}" for shape in shapes]
        lines.append(f"  {'frozen layer, TFLOP/s':30}" + "".join(f"{rate:>17}" for rate in rates))
    return [*lines, *not_measured(result)]


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


def acceleration_table(result: Json) -> list[str]:
    """The time and the peak memory of stock PEFT over those of accelerated layers, a column a shape."""
    shapes = result["shapes"]
    lines = [f"PEFT / accelerated, {result['dtype']}: time, peak memory"]
    lines.append(f"  {'':30}" + "".join(f"{place(shape):>19}" for shape in shapes))
    for method in ACCELERATION:
        names = f"PEFT {method}", f"accelerated {method}"
        cells = [
            " / ".join(number(ratio(shape["sides"], *names, quantity=quantity)) for quantity in QUANTITIES)
            for shape in shapes
        ]
        lines.append(f"  {method:30}" + "".join(f"{cell:>19}" for cell in cells))
    return [*lines, *not_measured(result)]


def not_measured(result: Json) -> list[str]:
    failed = {
        (name, row["failed"])
        for shape in result["shapes"]
        for name, row in shape["sides"].items()
        if "failed" in row
    }
    lines = [f"  not measured: {name}: {why}" for name, why in sorted(failed)]
    return lines + [f"  not begun: {shape}" for shape in result.get("not_begun", [])]


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
                    lines.append(
                        f"  {place(shape):17}{entry['product']:28}{name:12}{over:6.2f} × ATen,"
                        f" {row['share_of_copy']:.0%} of the copy's rate"
                    )
    return lines if len(lines) > 1 else [*lines, "  none"]


def judged(folder: Path) -> tuple[list[str], bool]:
    """The targets with what was measured, and whether all are met."""
    lines, all_met = [], True
    for file, targets in itertools.groupby(TARGETS, lambda target: target.file):
        result = read(folder / file)
        shapes = {} if result is None else {place(shape): shape for shape in result["shapes"]}
        lines.append(f"targets, {file}")
        for target in targets:
            sides = shapes.get(target.shape, {}).get(target.part, {})
            value, other = (
                ratio(sides, target.side, target.over, graph, target.quantity)
                for graph in (target.graph, not target.graph)
            )
            met = value is not None and target.met(value)
            all_met &= met
            verdict = "NOT MEASURED" if value is None else "met" if met else "MISSED"
            quartiles = sides.get(target.side, {}).get(target.quartiles)
            words = f"{target.side} / {target.over}"
            bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
            shown = "–" if value is None else f"{value:.3f}"
            beside = f"({'eager' if target.graph else 'graph'} {number(other)})"
            if target.quartiles or target.quantity != "median_seconds":  # of a CPU
                beside = ""
            if quartiles:
                noise = ", within noise" if quartiles[0] < target.bound < quartiles[1] else ""
                # The frozen side is the floor of any adapter, so that ratio is the ceiling of this one.
                ceiling = number(ratio(sides, target.side, "frozen"))
                beside = f"(quartiles {'–'.join(map(number, quartiles))}{noise}; over frozen {ceiling})"
            lines.append(f"  {target.shape:16}{words:50}{bound:>14}: {shown:>8}  {verdict}  {beside}")
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
            lines += ["", *ratio_table(result, FLOOR)]
    for name, table in (
        (CAYLEY_GPU, lambda result: ratio_table(result, CAYLEY)),
        ("llama_step.cuda.json", model_table),
        ("acceleration_step.cuda.bfloat16.json", acceleration_table),
        ("acceleration_layers.cuda.bfloat16.json", acceleration_table),
        ("products.cuda.bfloat16.json", slower_products),
    ):
        result = read(folder / name)
        lines += ["", *(table(result) if result else [f"{name}: not there"])]
    targets, all_met = judged(folder)
    return [*lines, "", *targets], all_met


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
    lines, all_met = summary(folder)
    print("\n".join(lines))
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
