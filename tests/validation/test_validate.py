"""`hybrid-kernels validate` finds what is broken, names it, and writes what it found."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest
import torch

import hybrid_kernels as hk
from hybrid_kernels.cases import operators
from hybrid_kernels.cases.configs import LinearShape
from hybrid_kernels.validation import layouts, models, report, run
from hybrid_kernels.validation.plan import plan
from tests.validation.broken import BREAKS
from tests.validation.support import reshaped


def test_what_is_right_passes(command, product) -> None:
    code, out, _ = command("--backend", "eager,cpp", "--seed", "7")
    assert (
        code == 0 and "seed 7, cpu, " in out and "passed: " in out and "failures" not in out.split("now")[-1]
    )


def test_the_table_is_whole_in_80_columns(capsys, monkeypatch) -> None:
    from rich.console import Console

    from hybrid_kernels.cli import validate

    backends = zip(
        ("reference", "triton", "cpp"),
        (run.PASSED, run.DECLINED, run.NOT_CHECKED),
        (1.25e9, None, None),
        strict=True,
    )
    found = [
        run.Result(max(operators.OPERATORS, key=len), backend, "cpu", "complex128", {"m": 1}, "contiguous", tensor,
                   outcome, ratio=ratio)
        for backend, outcome, ratio in backends
        for tensor in ("y", "gradient of x")
    ]  # fmt: skip
    done = report.Run("cpu", 0, False, None, 3, 3, 3, 1.0)
    validate._show(Console(width=80), found, done)
    out = capsys.readouterr().out
    assert "…" not in out and max(map(len, out.split("not run")[0].splitlines())) <= 80
    assert all(word in out for word in ("forward", "gradients", "passed", "declined", "1.25e+09"))


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_full_disk_is_found_before_the_work(option, command, product, tmp_path, monkeypatch) -> None:
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.tempfile, "NamedTemporaryFile", lambda **options: Full())
    product.forward = None  # would fail
    code, out, err = command(option, str(tmp_path / "v"))
    assert code == 2 and "v cannot be written: No space left on device" in err and "checks" not in out


def test_products_over_many_features_pass_on_every_seed(one_thread) -> None:
    """Eager and plain PyTorch multiply in other orders there, and MKL's errors in them are not alike."""
    layer = LinearShape(64, 3072, True, 1, "dense")
    cases = models.of_layers([layer], rows=3)
    for seed in range(3):
        planned = plan(
            [cases["low_rank_linear"]], ["eager"], [torch.float32], torch.device("cpu"), seed, False, True
        )
        assert not report.failures(run.run(planned))


def test_the_command_that_is_named_makes_the_failure_again(command, product, tmp_path) -> None:
    BREAKS["wrong_scale_in_one_gradient"][0](product)
    _, out, _ = command("--quick", "--seed", "3", "--json", str(tmp_path / "all.json"))
    line = next(line for line in out.splitlines() if "hybrid-kernels validate" in line and "bfloat16" in line)
    words = line.split()[2:]
    assert words[:6] == ["--op", "product", "--backend", "cpp", "--dtype", "bfloat16"]
    assert command(*words, "--json", str(tmp_path / "one.json"))[0] == 1
    every, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "one"))
    one = [r for r in every["results"] if r["backend"] == "cpp" and r["dtype"] == "bfloat16"]
    assert one == again["results"] and one
    command(*words[:-3], "--seed", "4", "--quick", "--json", str(tmp_path / "other.json"))
    other = json.loads((tmp_path / "other.json").read_text())["results"]
    assert [r["error"] for r in other] != [r["error"] for r in one]


def test_a_handful_of_numbers_is_looked_at_again_before_it_fails(product, monkeypatch) -> None:
    """Once in three draws twenty times plain PyTorch's error; on average over many, less than it."""
    calls = []
    right = product.forward

    def forward(x, w):
        calls.append(x.shape)
        y = right(x, w)
        return y * (1 + 2e-7) if len(calls) == 1 else y

    product.forward = forward
    found = list(run.validate(backends=["cpp"], dtypes=["float32"], quick=True, device="cpu"))
    assert all(result.passed for result in found) and len(calls) > 3 * 3


def test_declined_is_no_failure_and_no_pass(command, product) -> None:
    product.unsupported = lambda x, *_: f"it takes no {x.dtype}" if x.dtype == torch.bfloat16 else None
    code, out, _ = command("--quick", "--backend", "cpp")
    assert code == 0 and "declined: it takes no torch.bfloat16 (3 checks: product (cpp, bfloat16))" in out
    code, out, _ = command("--quick", "--backend", "cpp", "--dtype", "bfloat16")
    assert code == 1 and "nothing was checked" in out


def test_a_backend_that_ran_for_nothing_does_not_apply(command) -> None:
    code, out, _ = command(
        "--quick", "--op", "structured_unitary", "--backend", "eager", "--dtype", "float32"
    )
    assert code == 1 and "does not apply: no implementation named 'eager' takes part" in out
    assert "nothing was checked" in out


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("no memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
    ],
)
def test_out_of_memory_is_recorded(command, product, error) -> None:
    def forward(x, w):
        raise error

    product.forward = forward
    code, out, _ = command("--quick", "--backend", "eager,cpp")
    assert code == 0 and "not checked: memory: " in out and "product (cpp, float32, bfloat16, float64)" in out


def test_offsets_without_the_memory_are_not_checked(product, monkeypatch) -> None:
    monkeypatch.setattr(layouts.os, "sysconf", lambda name: 2**15)
    found = list(run.validate(backends=["cpp"], dtypes=["float32"], device="cpu"))
    (far,) = [r for r in found if r.layout == "offsets past 2^31"]
    assert far.outcome == "not checked" and far.message.startswith("memory: ")


def test_interrupt_keeps_what_there_is(command, product, tmp_path) -> None:
    calls = []
    right = product.forward

    def forward(x, w):
        calls.append(x)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return right(x, w)

    product.forward = forward
    files = tmp_path / "v.json", tmp_path / "v.html"
    code, out, err = command("--backend", "eager,cpp", "--json", str(files[0]), "--html", str(files[1]))
    assert code == 130 and "interrupted: 3 of " in out and "checkpoint" not in err
    found = json.loads(files[0].read_text())
    assert found["run"]["interrupted"] and found["run"]["done"] == 3 and found["passed"] is False
    assert len(found["results"]) == 9
    assert "interrupted: 3 of" in files[1].read_text()


def test_what_cannot_be_written_is_found_before_the_work(command, product, tmp_path) -> None:
    product.forward = None  # would fail
    for option in ("--json", "--html"):
        code, out, err = command(option, str(tmp_path / "absent" / "v"))
        assert code == 2 and "there is no folder" in err and "checks" not in out
        code, out, err = command(option, str(tmp_path))
        assert code == 2 and "is a folder" in err and "checks" not in out
        code, out, err = command(option, "/proc/v")
        assert code == 2 and "/proc/v cannot be written" in err and "checks" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_end_leaves_the_table_and_the_other_file(
    command, product, tmp_path, monkeypatch
) -> None:
    right = Path.write_bytes

    def write_bytes(self, content):
        if ".v.json." in self.name:
            right(self, content[:10])
            raise OSError(28, "No space left on device")
        return right(self, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    files = tmp_path / "v.json", tmp_path / "v.html"
    code, out, err = command("--quick", "--json", str(files[0]), "--html", str(files[1]))
    assert code == 2 and "could not be written: No space left" in err and "passed: " in out
    assert [path.name for path in tmp_path.iterdir()] == ["v.html"]


def test_json_has_every_figure(command, product, tmp_path) -> None:
    BREAKS["nan_without_rows"][0](product)
    path = tmp_path / "v.json"
    code, out, _ = command("--quick", "--json", str(path))
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 1 and found["passed"] is False and found["verdict"] in out
    assert set(found) >= {"machine", "versions", "commit", "run", "summary", "not_run", "failures", "results"}
    assert found["run"]["seed"] == 0 and found["versions"]["torch"] == torch.__version__
    first = found["results"][0]
    assert first["operator"] == "product" and first["shape"] == {"m": 5, "k": 7, "n": 3}
    assert first["ran"] == ["product: eager", "product_backward: eager"]
    assert first["error"] <= first["allowed"] and first["outcome"] == "passed"
    assert found["failures"][0]["error"] is None and "NaN" in found["failures"][0]["message"]
    rows = {(row["backend"], row["dtype"]): row for row in found["summary"]}
    assert rows["cpp", "float32"]["verdict"] == "failed" and rows["eager", "float32"]["verdict"] == "passed"
    assert rows["eager", "float32"]["checks"] == 3


def test_json_alone_on_standard_output(command, product) -> None:
    code, out, err = command("--quick", "--json", "-")
    assert code == 0 and json.loads(out)["passed"] is True and "verdict" in err


def test_html_is_one_well_formed_page(command, product, tmp_path) -> None:
    BREAKS["wrong_in_bfloat16_alone"][0](product)
    product.unsupported = lambda x, *_: "<no> double & such" if x.dtype == torch.float64 else None
    path = tmp_path / "v.html"
    command("--quick", "--html", str(path))
    text = path.read_text()
    open_tags, words = [], []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag not in ("script", "link", "img"), "it would not be self-contained"
            if tag != "meta":
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            words.append(data)

    Parser().feed(text)
    said = " ".join(" ".join(words).split())
    assert open_tags == []
    for expected in (
        "failed: ",
        "product (cpp, bfloat16)",
        "m5-k7-n3",
        "rows with a pitch",
        "hybrid-kernels validate --op product --backend cpp --dtype bfloat16 --device cpu --seed 0 --quick",
        "declined : <no> double & such",
        f"torch {torch.__version__}",
        "Seed 0",
    ):
        assert expected in said, expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "low_rank"], "operator is 'low_rank'; it may be one of 'low_rank_linear'"),
        (["--op", ","], "operator is ''"),
        (["--backend", "c"], "backend is 'c'; it may be one of 'auto'"),
        (["--dtype", "int8"], "dtype is 'int8'; it may be one of 'float32'"),
        (["--device", "tpu"], "device is 'tpu'; it may be 'cpu'"),
        (["--backend", "cuda"], "backend 'cuda' cannot be validated here: "),
        (["--model", "llama-tiny", "--rows", "0"], "rows is 0; it must be at least 1"),
    ],
)
def test_user_errors(command, arguments, message) -> None:
    if arguments == ["--backend", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, out, err = command(*arguments)
    assert code == 2 and message in err and out == ""


def test_triton_on_a_cpu_needs_the_interpreter(command, monkeypatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    code, out, err = command("--backend", "triton", "--quick")
    assert code == 2 and "TRITON_INTERPRET" in err and out == ""
    assert "triton" not in run.planned(None, None, None, "cpu", 0, True, None, 3).groups[0][0].backend
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    group = run.planned(None, None, None, "cpu", 0, True, None, 3).groups[0]
    assert "triton" in [check.backend for check in group]


@pytest.mark.parametrize("backend", ["auto", "reference", "eager", "cpp", "triton"])
def test_real_functions_pass(backend, monkeypatch, one_thread) -> None:
    small = {
        "householder_factors": {"k": 5, "reflections": 3},
        "hybrid_linear": {"m": 3, "k": 9, "n": 4, "r": 2, "reflections": 2, "bias": 1},
        "cayley_packed": {"blocks": 2, "b": 4},
    }
    cases = {name: reshaped(operators.OPERATORS[name], shape) for name, shape in small.items()}
    monkeypatch.setattr(operators, "OPERATORS", cases)
    if (reason := hk.ops.backend.unavailable(backend)) is not None:
        pytest.skip(reason)
    found = list(hk.validation.validate(backends=[backend], dtypes=["float32"], quick=True, device="cpu"))
    assert not report.failures(found), report.failures(found)
    assert {r.operator for r in found if r.passed} >= {"householder_factors", "hybrid_linear"}
    if backend not in ("auto", "reference"):
        ran = {each for r in found if r.operator == "hybrid_linear" for each in r.ran}
        assert f"hybrid_factors: {backend}" in ran


def test_the_layers_of_a_model(command, tmp_path, one_thread) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=24,
        num_hidden_layers=2,
        intermediate_size=40,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=8,
    )
    config.save_pretrained(tmp_path)
    path = tmp_path / "v.json"
    arguments = [
        "--model",
        str(tmp_path),
        "--rows",
        "2",
        "--backend",
        "auto,cpp",
        "--dtype",
        "float32,bfloat16",
    ]
    code, out, _ = command(*arguments, "--json", str(path))
    assert code == 0, out
    found = json.loads(path.read_text())
    shapes = {
        (r["shape"]["m"], r["shape"]["k"], r["shape"]["n"]) for r in found["results"] if "n" in r["shape"]
    }
    assert shapes == {(2, 24, 24), (2, 24, 12), (2, 24, 40), (2, 40, 24)}
    assert {row["operator"] for row in found["summary"]} == {
        "low_rank_linear",
        "hybrid_linear",
        "householder_factors",
        "householder_rotate",
        "cayley_packed",
        "block_rotate",
        "nn.HybridLinear",
    }
    module = [r for r in found["results"] if r["operator"] == "nn.HybridLinear"]
    assert {r["tensor"] for r in module} >= {"y", "gradient of x", "gradient of lora_A", "gradient of u"}
    assert any("hybrid_factors: cpp" in r["ran"] for r in module)


def test_a_model_whose_reference_does_not_fit_is_not_checked(command, monkeypatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(run, "available_bytes", lambda device: 1000)
    code, out, _ = command("--model", "llama-tiny", "--op", "nn.HybridLinear", "--dtype", "float32")
    assert (
        code == 1 and "not checked: memory: the reference takes about" in out and "nothing was checked" in out
    )


def test_nothing_heavy_is_imported_for_the_help() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom hybrid_kernels.cli import main\ntry:\n    main(['validate', '--help'])\nexcept SystemExit:\n"
        "    pass\nassert not {'transformers', 'jinja2.environment', 'hybrid_kernels.validation'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
