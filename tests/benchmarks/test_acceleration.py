import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

import hybrid_kernels as hk
from hybrid_kernels.cases.peft_butterflies import block_diagonal, blocks_of

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


def options(acceleration, dtype="float64"):
    return argparse.Namespace(device="cpu", dtype=dtype, tiny=True, methods=list(acceleration.METHODS))


def run(acceleration, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["acceleration.py", *arguments, "--device", "cpu"])
    acceleration.main()


def test_the_sides_of_a_method_have_the_same_gradients(acceleration):
    builders = acceleration.layer_builders(6, 64, 32, options(acceleration))
    truth = {name: torch.cat([each.flatten() for each in build()()]) for name, build in builders.items()}
    for method in acceleration.METHODS:
        peft = truth[acceleration.stock(method)]
        assert peft.numel() > 6 * 64
        for side in (acceleration.accelerated(method), acceleration.eager(method)):
            torch.testing.assert_close(truth[side], peft, msg=lambda text, s=side: f"{s}: {text}")


def test_the_eager_side_runs_on_aten_calls(acceleration):
    assert acceleration.measuring.on_backend("eager", hk.ops.backend.current_backend)() == "eager"
    assert hk.ops.backend.current_backend() == "auto"


def test_every_layer_of_the_model_is_accelerated(acceleration):
    model = acceleration.Model(options(acceleration, "float32"))
    for method in acceleration.METHODS:
        adapted = model.under(method)
        before = {
            name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad
        }
        assert len(before) >= len(acceleration.LINEAR) * model.size["num_hidden_layers"]
        ours = acceleration.on_our_operators(acceleration.shared_copy(adapted))
        assert all(parameter is before.get(name, parameter) for name, parameter in ours.named_parameters())
        kinds = {type(module).__name__ for module in ours.modules() if hasattr(module, "_acceleration")}
        assert len(kinds) == 1 and kinds.pop().startswith("Accelerated")
        assert not any(hasattr(module, "_acceleration") for module in adapted.modules())


def test_a_layer_that_is_left_alone_is_no_accelerated_side(acceleration, monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_ACCELERATE", "0")
    with pytest.raises(RuntimeError, match="was left alone: environment variable"):
        acceleration.on_our_operators(acceleration.Model(options(acceleration)).under("LoRA r=16"))


def test_the_stand_in_makes_block_diagonal_matrices():
    blocks = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    matrices = torch.stack([torch.block_diag(*each) for each in blocks])
    gradient = torch.randn_like(matrices)
    torch.testing.assert_close(block_diagonal(blocks.detach())[0], matrices.detach(), rtol=0, atol=0)
    (expected,) = torch.autograd.grad(matrices, blocks, gradient)
    torch.testing.assert_close(blocks_of(gradient, blocks.detach())[0], expected, rtol=0, atol=0)
    torch.testing.assert_close(blocks_of(gradient.mT, blocks.detach())[0], expected.mT, rtol=0, atol=0)


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
