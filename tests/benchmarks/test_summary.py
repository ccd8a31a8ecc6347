import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "summary.py"
specification = importlib.util.spec_from_file_location("summary", PATH)
summary = importlib.util.module_from_spec(specification)
specification.loader.exec_module(summary)


def side(milliseconds, graph=None):
    return {
        "median_seconds": milliseconds / 1e3,
        "ratio_to_frozen": milliseconds / 2,
        "graph": {"failed": "RuntimeError: no capture"} if graph is None else {"median_seconds": graph / 1e3},
    }


def layer_result(**sides):
    named = {
        "frozen layer": side(2.0, 1.9),
        "hybrid 16 + 16": side(2.1, 2.0),
        "PEFT LoRA r=32": side(2.6, 2.5),
        "PEFT HRA r=16": side(30.0),
        "torch.compile 16 + 16": side(2.3, 2.2),
        "PEFT BOFT b=32 m=2": {"failed": "OutOfMemoryError: CUDA out of memory"},
    }
    shape = {"m": 8192, "k": 4096, "n": 4096, "frozen_tflops": 700.0, "sides": named | sides}
    return {
        "dtype": "bfloat16",
        "device": "cuda",
        "commit": "abc1234",
        "info": {"gpus": [{"name": "a GPU"}], "packages": {"triton": "3.6"}, "torch": {"version": "2.11"}},
        "shapes": [shape],
    }


def cayley_result(shapes, **sides):
    """Ours takes 1 ms, forward 0.5 ms, and from a graph twice the memory's time of 0.1 ms."""
    named = {
        "ours": side(1.0, 0.9),
        "PEFT OFT, solve": side(16.0),
        "torch orthogonal, Cayley": side(20.0),
        "ours, cuda": {"failed": "RuntimeError: no"},
    }
    forward = {"ours": side(0.5, 0.2), "memory, once": side(0.1, 0.1)}
    entries = []
    for shape in shapes:
        blocks, size = map(int, shape.split("x"))
        entries.append({"blocks": blocks, "block_size": size, "sides": named | sides, "forward": forward})
    return {"dtype": "float32", "shapes": entries}


CPU_SHAPES = ["4096x8", "2048x16", "1024x32", "512x64", "128x128", "32x256"]
GPU_SHAPES = ["8192x32", "2048x64", "1024x128", "4096x8", "2048x16"]


def acceleration_result(shapes, **changes):
    """Accelerated layers are 4.5 times as fast as stock PEFT's and take 65 % of the memory."""
    sides = {"frozen": {"median_seconds": 1.8 / 1e3}}
    for method in summary.ACCELERATION:
        row = {"median_seconds": 9.0 / 1e3, "peak_bytes": 100, "quartiles_to_accelerated": [4.1, 4.6]}
        sides |= {
            f"PEFT {method}": row,
            f"accelerated {method}": {"median_seconds": 2.0 / 1e3, "peak_bytes": 65},
        }
    return {"dtype": "float32", "shapes": [{**shape, "sides": sides | changes} for shape in shapes]}


LLAMA = [{"model": "llama"}]
LAYERS = [
    {"m": 512, "k": 768, "n": 768},
    {"m": 1024, "k": 2048, "n": 2048},
    {"m": 2048, "k": 1024, "n": 4096},
]


def written(folder, result, cpu=None, gpu=None, **changes):
    (folder / "linear_layer.cuda.bfloat16.json").write_text(json.dumps(result))
    (folder / "cayley.cpu.float32.json").write_text(json.dumps(cpu or cayley_result(CPU_SHAPES)))
    (folder / "cayley.cuda.float32.json").write_text(json.dumps(gpu or cayley_result(GPU_SHAPES)))
    for file, shapes in ((summary.STEP, LLAMA), (summary.LAYERS, LAYERS), (summary.MEMORY_FILE, LLAMA)):
        (folder / file).write_text(json.dumps(acceleration_result(shapes, **changes)))
    lines, all_met = summary.summary(folder)
    return "\n".join(lines), all_met


def test_ratios_and_targets(tmp_path):
    text, all_met = written(tmp_path, layer_result())
    assert all_met
    assert "a GPU; torch 2.11, triton 3.6, peft None; commit abc1234" in text
    assert "1.05 / 1.05" in text and "15.00 / –" in text
    assert "not measured: PEFT BOFT b=32 m=2: OutOfMemoryError" in text
    assert "16.00 / –" in text and "not measured: ours, cuda: RuntimeError: no" in text
    assert text.count("  met  ") == 4 + 2 * (6 + 3) + 3 + 6 * (1 + 3) + 6
    assert "4.500  met  (quartiles 4.10–4.60; over frozen 5.00)" in text
    assert "llama_step.cuda.json: not there" in text
    assert "tests: not run" in text


@pytest.mark.parametrize(
    ("name", "row", "verdict"),
    [
        ("hybrid 16 + 16", side(2.17), "MISSED"),
        ("PEFT LoRA r=32", side(2.5), "MISSED"),
        ("PEFT HRA r=16", {"failed": "no"}, "NOT MEASURED"),
        ("torch.compile 16 + 16", side(2.0), "MISSED"),
    ],
)
def test_a_target_that_is_not_met(tmp_path, name, row, verdict):
    text, all_met = written(tmp_path, layer_result(**{name: row}))
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
    sides = {name: side(milliseconds)}
    text, all_met = written(
        tmp_path, layer_result(), cayley_result(CPU_SHAPES, **sides), cayley_result(GPU_SHAPES, **sides)
    )
    assert not all_met
    assert text.count("  MISSED  ") == missed


def test_the_forward_is_judged_by_its_graph(tmp_path):
    gpu = cayley_result(GPU_SHAPES)
    gpu["shapes"][0]["forward"] = {"ours": side(0.1, 0.31), "memory, once": side(0.1, 0.1)}
    gpu["shapes"][3]["forward"] = {"ours": side(0.1), "memory, once": side(0.1, 0.1)}
    text, all_met = written(tmp_path, layer_result(), gpu=gpu)
    assert not all_met
    assert text.count("  MISSED  ") == text.count("  NOT MEASURED  ") == 1
    assert "3.100  MISSED  (eager 1.00)" in text


@pytest.mark.parametrize(
    ("side", "row", "missed", "words"),
    [
        (
            "PEFT HRA r=16",
            {"median_seconds": 7.8e-3, "quartiles_to_accelerated": [3.8, 4.1]},
            4,
            "within noise",
        ),
        (
            "PEFT HRA r=16",
            {"median_seconds": 7.8e-3, "quartiles_to_accelerated": [3.8, 3.95]},
            4,
            "3.80–3.95;",
        ),
        (
            "PEFT BOFT b=8 m=2",
            {"median_seconds": 5.8e-3, "quartiles_to_accelerated": [2.8, 2.9]},
            4,
            "MISSED",
        ),
        (
            "PEFT OFT b=32 exact",
            {"median_seconds": 1.9e-3, "quartiles_to_accelerated": [0.9, 1.2]},
            4,
            "within noise",
        ),
        ("accelerated BOFT b=8 m=2", {"median_seconds": 2e-3, "peak_bytes": 71}, 1, "0.710  MISSED"),
        ("accelerated DoRA r=16", {"median_seconds": 2e-3, "peak_bytes": 101}, 1, "1.010  MISSED"),
    ],
)
def test_acceleration_has_bounds_for_time_and_memory(tmp_path, side, row, missed, words):
    text, all_met = written(tmp_path, layer_result(), **{side: {"peak_bytes": 100} | row})
    assert not all_met
    assert text.count("  MISSED  ") == missed
    assert words in text
    assert ("within noise" in text) == (words == "within noise")


def test_a_target_met_within_noise_says_so(tmp_path):
    row = {"median_seconds": 2.02e-3, "peak_bytes": 100, "quartiles_to_accelerated": [0.97, 1.01]}
    text, all_met = written(tmp_path, layer_result(), **{"PEFT LoRA r=16": row})
    assert all_met
    assert text.count("1.010  met  (quartiles 0.97–1.01, within noise; over frozen 1.12)") == 4


def test_the_table_of_acceleration_on_a_gpu(tmp_path):
    result = acceleration_result(LAYERS[:1], **{"PEFT OFT b=32": {"failed": "OutOfMemoryError: no"}})
    (tmp_path / "acceleration_layers.cuda.bfloat16.json").write_text(json.dumps(result))
    text = "\n".join(summary.summary(tmp_path)[0])
    assert "4.50 / 1.54" in text and "not measured: PEFT OFT b=32: OutOfMemoryError: no" in text


def test_a_shape_without_its_target_is_not_measured(tmp_path):
    text, all_met = written(tmp_path, layer_result(), cpu=cayley_result(CPU_SHAPES[1:]))
    assert not all_met
    assert text.count("  NOT MEASURED  ") == 2


def test_nothing_measured(tmp_path):
    lines, all_met = summary.summary(tmp_path)
    assert not all_met
    assert sum("NOT MEASURED" in line for line in lines) == len(summary.TARGETS)


def test_what_the_tests_said(tmp_path):
    path = tmp_path / "tests.cuda.txt"
    path.write_text("FAILED tests/a.py::b\n===== 1 failed, 20 passed in 3.21s =====\n")
    assert summary.tests_line(path) == "tests: 1 failed, 20 passed in 3.21s"
    path.write_text("!!!! KeyboardInterrupt !!!!\n===== 20 passed in 3.21s =====\n")
    assert summary.tests_line(path).endswith("3.21s, then stopped")
    path.write_text("killed")
    assert "no count" in summary.tests_line(path)
