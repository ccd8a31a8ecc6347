import importlib.util
import json
from pathlib import Path

import pytest

from tests.benchmarking.recorded import MACHINE, run

PATH = Path(__file__).parents[2] / "benchmarks" / "summary.py"
specification = importlib.util.spec_from_file_location("summary", PATH)
summary = importlib.util.module_from_spec(specification)
specification.loader.exec_module(summary)

LINEAR = {"m": 8192, "k": 4096, "n": 4096}
GPU = {"machine": {**MACHINE, "gpu": "a GPU"}, "device": "cuda"}
MODEL = {"layers": 4, "batch": 1, "tokens": 512}
LAYERS = [
    {"m": 512, "k": 768, "n": 768},
    {"m": 1024, "k": 2048, "n": 2048},
    {"m": 2048, "k": 1024, "n": 4096},
]
CPU_BLOCKS = {4096: 8, 2048: 16, 1024: 32, 512: 64, 128: 128, 32: 256}
GPU_BLOCKS = {8192: 32, 2048: 64, 1024: 128}
FORWARD_BLOCKS = {8192: 32, 2048: 16, 4096: 8}
MEMORY_BOUND = {"share": 0.5, "bound": "memory"}


def layer(**changes):
    """Of a GPU, all targets met; the frozen layer and ours are captured in a CUDA graph."""
    sides = {
        "frozen layer": 2.0,
        "hybrid 16 + 16": 2.04,
        "PEFT LoRA r=32": 2.6,
        "PEFT HRA r=16": 30.0,
        "torch.compile 16 + 16": 2.3,
        "PEFT BOFT b=32 m=2": "OutOfMemoryError: CUDA out of memory",
    }
    found = run(sides | changes, LINEAR, name="linear", dtype="bfloat16", **GPU)
    for record in found:
        if record["side"] in ("frozen layer", "hybrid 16 + 16"):
            ratios = {"frozen layer": {"median": 1.04, "quartiles": [1, 1.1]}}
            record["graph"] = {"median_seconds": 1e-3, "ratios": ratios}
        if record["side"] == "hybrid 16 + 16":
            record["roofline"] = {"share": 0.71, "bound": "compute"}
    return found


def cayley(blocks, part="both", roofline=None, graph=None, on=None, **changes):
    """Ours takes 1 ms."""
    sides = {
        "ours": 1.0,
        "PEFT OFT, solve": 16.0,
        "torch orthogonal, Cayley": 20.0,
        "ours, cuda": "RuntimeError: no",
    }
    return [
        record
        for count, b in blocks.items()
        for record in run(
            sides | changes,
            {"blocks": count, "b": b},
            kind="operator",
            name="cayley_packed",
            floor=None,
            ours="ours",
            part=part,
            roofline=roofline,
            graph=graph,
            **(on or {}),
        )
    ]


def forward(blocks, **fields):
    fields = {"roofline": MEMORY_BOUND, "graph": {"median_seconds": 1e-4, "ratios": {}}, "on": GPU} | fields
    return cayley(blocks, "forward", **fields)


def acceleration(**changes):
    """Accelerated layers are 4.5 times as fast as stock PEFT's and take 65 % of the memory."""
    result = []
    places = [
        ("model", "llama-small-", MODEL, "frozen model"),
        *(("layer", "", s, "frozen layer") for s in LAYERS),
    ]
    for kind, prefix, shape, floor in places:
        for method in summary.ACCELERATION:
            ours, stock = f"accelerated {method}", f"PEFT {method}"
            sides = {floor: 1.8, stock: 9.0, ours: 2.0} | {
                k: v for k, v in changes.items() if k in (ours, stock)
            }
            name = f"{prefix}accelerate-{method.replace(' ', '-')}"
            records = run(sides, shape, kind=kind, name=name, floor=floor, ours=ours, variants=())
            for record in records:
                if "failed" not in record:
                    record["peak_bytes"] = {ours: 65, stock: 100}.get(record["side"], 40)
            result += records
    return result


def written(folder, on_gpu=None, cpu=None, gpu_float32=None, accelerated=None):
    """The text and whether all is met, of the records given and of others that meet all targets in their place."""
    gpu_float32 = gpu_float32 or cayley(GPU_BLOCKS, on=GPU) + forward(FORWARD_BLOCKS)
    cpu = (cpu or cayley(CPU_BLOCKS)) + (accelerated or acceleration())
    files = {summary.GPU: on_gpu or layer(), summary.CPU: cpu, summary.GPU_FLOAT32: gpu_float32}
    for name, found in files.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in found))
    lines, all_met = summary.summary(folder)
    return "\n".join(lines), all_met


def test_ratios_and_targets(tmp_path):
    text, all_met = written(tmp_path)
    assert all_met, text
    assert "a GPU; torch 2.13.0, triton None, peft 0.21.2; commit abc1234" in text
    assert "layer/linear, forward + backward, bfloat16: × frozen layer, eager / CUDA graph" in text
    assert "1.02 / 1.04" in text and "15.00 / –" in text and "71%" in text
    assert "not measured: PEFT BOFT b=32 m=2: OutOfMemoryError" in text
    assert "16.00 / –" in text and "not measured: ours, cuda: RuntimeError: no" in text
    assert text.count("  met  ") == len(summary.TARGETS) == 4 + 2 * (6 + 3) + 3 + 6 * (1 + 3) + 6
    assert "1.020  met  (quartiles 0.98–1.05; graph 1.04)" in text
    assert "4.500  met  (quartiles 4.32–4.63; over frozen layer 5.00)" in text
    assert "4.500  met  (quartiles 4.32–4.63; over frozen model 5.00)" in text
    assert "0.650  met  " in text
    assert "products.cuda.bfloat16.json: not there" in text
    assert "tests: not run" in text and "validation: not run" in text


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("hybrid 16 + 16", 2.17, "MISSED"),
        ("PEFT LoRA r=32", 2.4, "MISSED"),
        ("PEFT HRA r=16", "no", "NOT MEASURED"),
        ("torch.compile 16 + 16", 2.0, "MISSED"),
    ],
)
def test_a_target_that_is_not_met(tmp_path, name, value, verdict):
    text, all_met = written(tmp_path, layer(**{name: value}))
    assert not all_met
    assert verdict in text


@pytest.mark.parametrize(
    ("name", "milliseconds", "missed"),
    # Between the bounds of the shapes: 6, 8, 6, 5, 4 and 3 on the CPU, 15, 8 and 4 on the GPU.
    [
        ("PEFT OFT, solve", 5.5, 3 + 2),
        ("torch orthogonal, Cayley", 7.5, 1 + 2),
        ("PEFT OFT, solve", 3.5, 5 + 3),
    ],
)
def test_each_shape_of_the_cayley_transform_has_its_bound(tmp_path, name, milliseconds, missed):
    sides = {name: milliseconds}
    text, all_met = written(
        tmp_path,
        cpu=cayley(CPU_BLOCKS, **sides),
        gpu_float32=cayley(GPU_BLOCKS, on=GPU, **sides) + forward(FORWARD_BLOCKS),
    )
    assert not all_met
    assert text.count("  MISSED  ") == missed


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"roofline": {"share": 0.32, "bound": "memory"}}, "3.125  MISSED"),
        ({"roofline": {"share": 0.34, "bound": "memory"}}, "2.941  met"),
        ({"roofline": {"share": 0.5, "bound": "compute"}}, "–  NOT MEASURED"),
        ({"graph": {"failed": "it waits"}}, "–  NOT MEASURED"),
        ({"roofline": None}, "–  NOT MEASURED"),
    ],
)
def test_the_forward_is_judged_by_its_graph_against_the_memory_alone(tmp_path, fields, verdict):
    text, all_met = written(
        tmp_path,
        gpu_float32=cayley(GPU_BLOCKS, on=GPU) + forward({2048: 16, 4096: 8}) + forward({8192: 32}, **fields),
    )
    line = next(line for line in text.splitlines() if "blocks8192-b32" in line and "memory, once" in line)
    assert verdict in line
    assert all_met == ("met" in verdict)


@pytest.mark.parametrize(
    ("side", "value", "missed", "words"),
    [
        ("PEFT HRA r=16", 7.9, 4, "within noise"),
        ("PEFT HRA r=16", 7.0, 4, "3.36–3.60;"),
        ("PEFT BOFT b=8 m=2", 5.8, 4, "MISSED"),
        ("PEFT OFT b=32 exact", 1.96, 4, "within noise"),
    ],
)
def test_acceleration_has_bounds_for_the_time(tmp_path, side, value, missed, words):
    text, all_met = written(tmp_path, accelerated=acceleration(**{side: value}))
    assert not all_met
    assert text.count("  MISSED  ") == missed
    assert words in text
    assert ("within noise" in text) == (words == "within noise")


@pytest.mark.parametrize(
    ("method", "peak", "shown"), [("BOFT b=8 m=2", 71, "0.710"), ("DoRA r=16", 101, "1.010")]
)
def test_acceleration_has_bounds_for_the_memory_of_the_model(tmp_path, method, peak, shown):
    records = acceleration()
    for record in records:
        if record["side"] == f"accelerated {method}" and record["kind"] == "model":
            record["peak_bytes"] = peak
    text, all_met = written(tmp_path, accelerated=records)
    assert not all_met
    assert text.count("  MISSED  ") == 1 and f"{shown}  MISSED" in text


def test_a_target_met_within_noise_says_so(tmp_path):
    text, all_met = written(tmp_path, accelerated=acceleration(**{"PEFT LoRA r=16": 2.02}))
    assert all_met
    assert text.count("1.010  met  (quartiles 0.97–1.04, within noise; over frozen ") == 4


def test_the_table_of_accelerated_models_on_a_gpu_has_all_methods_and_the_memory(tmp_path):
    records = [
        {
            **record,
            "device": "cuda",
            "machine": GPU["machine"],
            "name": record["name"].replace("small", "medium"),
        }
        for record in acceleration(**{"PEFT OFT b=32": "OutOfMemoryError: no"})
        if record["kind"] == "model"
    ]
    for record in records:
        if "peak_bytes" in record:
            record["peak_bytes"] *= 2**20
    text, _ = written(tmp_path, layer() + records)
    title = "model/llama-medium-accelerate, forward + backward, float32: × frozen model, eager / peak MiB"
    assert text.count(title) == 1
    assert "5.00 / 100" in text and "1.11 / 65.00" in text
    assert "not measured: PEFT OFT b=32: OutOfMemoryError: no" in text


def test_a_shape_without_its_target_is_not_measured(tmp_path):
    text, all_met = written(tmp_path, cpu=cayley({n: b for n, b in CPU_BLOCKS.items() if n != 4096}))
    assert not all_met
    assert text.count("  NOT MEASURED  ") == 2


def test_the_commit_measured_last_is_judged(tmp_path):
    old = [{**record, "commit": "old0000"} for record in layer(**{"PEFT LoRA r=32": 1.0})]
    assert written(tmp_path, old + layer())[1]
    assert not written(tmp_path, layer() + old)[1]


def test_nothing_measured(tmp_path):
    lines, all_met = summary.summary(tmp_path)
    assert not all_met
    assert sum("NOT MEASURED" in line for line in lines) == len(summary.TARGETS)


def test_targets_are_of_cases_and_sides_that_there_are():
    import torch

    from hybrid_kernels.cases import layers, models, operators
    from hybrid_kernels.cases.base import shape_name

    cpu = torch.device("cpu")
    blocks = [*CPU_BLOCKS.items(), *GPU_BLOCKS.items(), *FORWARD_BLOCKS.items()]
    sizes = [{"blocks": count, "b": b} for count, b in dict.fromkeys(blocks)]
    cases = [
        *layers.cases(cpu, torch.float32, [*LAYERS, LINEAR]),
        *models.cases("llama-small", cpu, torch.float32),
        *operators.benchmark_cases(cpu, torch.float32, ["cayley_packed"], sizes),
    ]
    found = {f"{case.kind}/{case.name}/{shape_name(case.shape)}": case for case in cases}
    for target in summary.TARGETS:
        case = found[target.case]
        assert target.part in case.passes
        assert case.ours in (target.side, target.over)
        if target.over != summary.MEMORY and case.kind == "operator":
            assert {target.side, target.over} <= set(case.builders())


def test_what_validation_said(tmp_path):
    (tmp_path / "validate.cuda.json").write_text(json.dumps({"passed": False, "verdict": "3 of 40 failed"}))
    assert "validation: 3 of 40 failed" in written(tmp_path)[0]


def test_what_the_tests_said(tmp_path):
    path = tmp_path / "tests.cuda.txt"
    path.write_text("FAILED tests/a.py::b\n===== 1 failed, 20 passed in 3.21s =====\n")
    assert summary.tests_line(path) == "tests: 1 failed, 20 passed in 3.21s"
    path.write_text("!!!! KeyboardInterrupt !!!!\n===== 20 passed in 3.21s =====\n")
    assert summary.tests_line(path).endswith("3.21s, then stopped")
    path.write_text("killed")
    assert "no count" in summary.tests_line(path)
