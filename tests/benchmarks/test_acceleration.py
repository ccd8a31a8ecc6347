import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("acceleration"), importlib.import_module("summary")


@pytest.fixture
def acceleration(modules):
    modules[0].allow_butterflies_in_peft()
    return modules[0]


def run(acceleration, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["acceleration.py", *arguments, "--device", "cpu"])
    acceleration.main()


@pytest.mark.parametrize("arguments", [["step", "--tiny"], ["layers", "--shapes", "6x64x32"]])
def test_the_command_writes_what_the_summary_reads(
    modules, acceleration, monkeypatch, tmp_path, capsys, arguments
):
    summary = modules[1]
    assert list(summary.ACCELERATION) == list(acceleration.METHODS)
    path = tmp_path / "result.json"
    capsys.readouterr()
    run(acceleration, monkeypatch, *arguments, "--rounds", "3", "--output", str(path))
    text = capsys.readouterr().out
    result = json.loads(path.read_text())
    assert result["benchmark"] == f"acceleration_{arguments[0]}"
    assert result["boft_extension"] == "plain PyTorch in its place"
    (shape,) = result["shapes"]
    assert summary.place(shape) == ("llama" if arguments[0] == "step" else "6x64x32")
    for method in acceleration.METHODS:
        peft, ours = f"PEFT {method}", f"accelerated {method}"
        assert summary.ratio(shape["sides"], peft, ours) == pytest.approx(
            shape["sides"][peft]["ratio_to_accelerated"]
        )
        low, high = shape["sides"][peft]["quartiles_to_accelerated"]
        assert 0 < low <= high
        line = next(line for line in text.splitlines() if line.startswith(f"  {method} "))
        for name, key in (
            (peft, "ratio_to_frozen"),
            (ours, "ratio_to_frozen"),
            (peft, "ratio_to_accelerated"),
        ):
            assert f" {shape['sides'][name][key]:.2f}" in line
    assert "BOFT b=8 m=2" in text and "nan" not in text and "–  " not in text
    assert "plain PyTorch in the place of the CUDA extension" in text
    assert "OFT b=32 exact" in "\n".join(summary.acceleration_table(result))


def test_memory_is_measured_in_processes_of_their_own(modules, acceleration, monkeypatch, tmp_path):
    path = tmp_path / modules[1].MEMORY_FILE
    arguments = ["--tiny", "--rounds", "1", "--without", "DoRA,HRA,OFT,BOFT", "--output", str(path)]
    run(acceleration, monkeypatch, "memory", *arguments)
    (shape,) = json.loads(path.read_text())["shapes"]
    assert list(shape["sides"]) == ["frozen", "PEFT LoRA r=16", "accelerated LoRA r=16"]
    assert all(0 < row["peak_bytes"] < 2**30 for row in shape["sides"].values())
    words = [
        line for line in modules[1].judged(tmp_path)[0] if "accelerated LoRA r=16 / PEFT LoRA r=16" in line
    ]
    assert len(words) == 1 and "NOT MEASURED" not in words[0]


def test_a_process_that_fails_says_why(acceleration):
    namespace = argparse.Namespace(device="cpu", dtype="no dtype", tiny=True, rounds=1)
    assert "no dtype" in acceleration.memory_in_new_processes("frozen", namespace)["failed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["layers", "--shapes", "6x64"], "--shapes is '6x64'; it must be MxKxN"),
    ],
)
def test_bad_options_are_refused(acceleration, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message.replace("[", r"\[")):
        run(acceleration, monkeypatch, *arguments)
