"""`hybrid-kernels info`: whether it is installed right, what could run and what does."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import hybrid_kernels as hk
from hybrid_kernels import _extension, _info
from hybrid_kernels.cases.operators import OPERATORS, operators_of
from hybrid_kernels.cli import choices
from hybrid_kernels.ops.backend import OPERATORS as REGISTERED

BUILT = _extension.load() is None
needs_extension = pytest.mark.skipif(not BUILT, reason="the extension is not built")


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch):
    """Small ones, at which the same is chosen."""
    shapes = {name: dict(case.measured["cpu"][0]) for name, case in OPERATORS.items()}
    for name, case in OPERATORS.items():
        small = {"m": 64, "k": 64, "n": 64, "blocks": 4, "b": 16}
        shape = {size: small.get(size, given) for size, given in shapes[name].items()}
        monkeypatch.setitem(case.measured, "cpu", (shape,))


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Puts another record of the build in the place of this one's."""

    def record(**values: object) -> None:
        (tmp_path / "build.json").write_text(json.dumps(_extension.build_info() | values))
        monkeypatch.setattr(_extension, "_BUILD_INFO", tmp_path / "build.json")
        _extension.load.cache_clear()
        _extension.cuda_unavailable.cache_clear()

    yield record
    monkeypatch.undo()
    _extension.load.cache_clear()
    _extension.cuda_unavailable.cache_clear()


def as_json(command, *arguments: str) -> dict:
    code, out, err = command("info", "--device", "cpu", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_json_has_every_function_in_every_dtype_it_takes_and_the_operators_of_both_passes(command):
    found = as_json(command, "--dtype", "float32,complex64")
    assert set(found["choices"]) == {
        f"cpu {str(dtype).removeprefix('torch.')} {name}"
        for dtype in (torch.float32, torch.complex64)
        for name, case in OPERATORS.items()
        if dtype in case.dtypes
    }
    for name in OPERATORS:
        ran = found["choices"][f"cpu float32 {name}"]
        assert set(ran) == {"shape", "forward", "backward", "declined"}
        assert {*ran["forward"], *ran["backward"]} == operators_of(name)
    assert set(found["operators"]) == set(REGISTERED)
    assert set(found) >= {"torch", "cpu", "packages", "installing", "extension", "verdict"}


@needs_extension
def test_what_runs_is_what_the_package_chooses(command):
    found = as_json(command, "--dtype", "float32,float16")["choices"]
    assert found["cpu float32 householder_factors"]["forward"] == {"householder_factors": "cpp"}
    assert found["cpu float16 low_rank_add"]["forward"] == {"low_rank_add": "eager"}
    with hk.use_backend("eager"):
        asked = as_json(command, "--dtype", "float32")
    assert asked["backend_requested"] == "eager"
    for ran in asked["choices"].values():
        assert {*ran["forward"].values(), *ran["backward"].values()} <= {"eager"}


@needs_extension
def test_the_tables_name_every_operator_and_every_reason_once(command):
    code, out, _ = command("info", "--device", "cpu", "--dtype", "float32,bfloat16")
    assert code == 0
    for name in (*OPERATORS, *REGISTERED):
        assert f"│ {name} " in out
    if not torch.cuda.is_available():
        assert out.count("the CUDA kernels are not built") + out.count("torch sees no CUDA device") == 1
        assert out.count("there is no GPU, and TRITON_INTERPRET was not set") <= 1
    assert torch.__version__ in out
    assert out.splitlines()[-1].startswith("installed right: C++ kernels with ")
    assert f"all {2 * len(OPERATORS)} operators tried ran" in out.splitlines()[-1]


def test_a_failed_build_is_reported_with_its_reason_and_what_to_do(command, build):
    reason = "the build failed: error: command 'g++' failed [exit code 1]"
    build(cpp=False, cuda=False, reason=reason, compiler=None)
    found = as_json(command, "--dtype", "float32")
    assert found["extension"]["loaded"] is False and reason in found["extension"]["reason"]
    assert not found["verdict"]["ok"] and reason in found["verdict"]["message"]
    assert found["verdict"]["commands"] == [choices.REBUILD]
    for ran in found["choices"].values():
        assert "cpp" not in {*ran["forward"].values(), *ran["backward"].values()}
    code, out, _ = command("info", "--device", "cpu", "--dtype", "float32")
    assert code == 0
    *_, last, remedy = out.splitlines()
    assert last.startswith("not installed right: the compiled operators are not built") and reason in last
    assert "python setup.py build_ext --inplace" in remedy
    assert out.count(reason) == 4  # of the extension, below each table, in the verdict


def test_an_extension_for_another_torch_is_reported(command, build):
    build(cpp=True, torch="1.2.3", reason=None)
    message = as_json(command, "--dtype", "float32")["verdict"]["message"]
    assert f"built for torch 1.2.3, this is torch {torch.__version__}" in message


@needs_extension
def test_how_it_was_built_is_readable(command, build):
    flags = {"cxx": ["-O3", "-fopenmp"], "nvcc": ["-O3"]}
    build(
        compiler="g++ 99.1",
        flags=flags,
        cuda=True,
        cuda_reason=None,
        cuda_architectures="9.0+PTX",
        debug=True,
    )
    _, out, _ = command("info", "--device", "cpu", "--dtype", "float32")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "compiler g++ 99.1",
        "cxx flags -O3 -fopenmp",
        "nvcc flags -O3",
        "CUDA kernels built for 9.0+PTX",
    ):
        assert line in lines
    assert (
        f"instruction set {torch.backends.cpu.get_cpu_capability()} (torch's; ATEN_CPU_CAPABILITY"
        in out.replace("instruction set  ", "instruction set ")
    )
    assert "not installed right: the compiled operators were built without optimisation" in lines[-2]


def test_an_operator_that_fails_is_named_and_the_others_go_on(command, monkeypatch):
    def broken(**arguments: object) -> None:
        raise RuntimeError("no [such] kernel")

    monkeypatch.setattr(hk.functional, "block_rotate", broken)
    found = as_json(command, "--dtype", "float32")
    assert found["choices"]["cpu float32 block_rotate"]["failed"] == "RuntimeError: no [such] kernel"
    assert "failed" not in found["choices"]["cpu float32 butterfly_rotate"]
    assert "cpu float32 block_rotate fails: RuntimeError: no [such] kernel" in found["verdict"]["message"]
    _, out, _ = command("info", "--device", "cpu", "--dtype", "float32")
    assert "fails 1" in out and "1  RuntimeError: no [such] kernel" in out


def test_missing_packages_come_with_what_installs_them(command, monkeypatch):
    have = _info._version
    monkeypatch.setattr(
        _info, "_version", lambda name: None if name in ("peft", "unsloth", "trl") else have(name)
    )
    requires = [
        "peft<0.22,>=0.21; extra == 'peft'",
        "hybrid-kernels[peft]; extra == 'study'",
        'trl; extra == "dev"',
    ]
    monkeypatch.setattr(_info.importlib.metadata, "requires", lambda name: requires)
    found = as_json(command, "--dtype", "float32")
    assert found["packages"]["peft"] is None and found["packages"]["safetensors"] is not None
    expected = {"peft": "'hybrid-kernels[peft]'", "unsloth": "'unsloth'", "trl": "'hybrid-kernels[dev]'"}
    assert {name: found["installing"][name] for name in expected} == {
        name: f"pip install {what}" for name, what in expected.items()
    }
    _, out, _ = command("info", "--device", "cpu", "--dtype", "float32")
    assert "not installed: pip install 'hybrid-kernels[peft]'" in out


def test_without_its_metadata_a_package_is_installed_by_its_own_name(monkeypatch):
    def absent(name: str) -> None:
        raise _info.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_info.importlib.metadata, "requires", absent)
    monkeypatch.setattr(_info.importlib.metadata, "version", absent)
    assert _info._installing()["peft"] == "pip install 'peft'"


def test_the_verdict_with_a_gpu_asks_for_cuda_kernels_and_triton():
    found = copy.deepcopy(hk.info())
    found["extension"] |= {
        "loaded": True,
        "debug": False,
        "cuda": False,
        "cuda_reason": "no CUDA toolkit found",
    }
    found["gpus"], found["installing"] = (
        [{"name": "H100"}],
        {"triton": "pip install 'hybrid-kernels[triton]'"},
    )
    right = choices.verdict(found, {})
    assert not right["ok"]
    assert "the CUDA kernels are not built: no CUDA toolkit found" in right["message"]
    assert right["commands"] == [choices.REBUILD, "pip install 'hybrid-kernels[triton]'"]
    found["extension"]["cuda"], found["installing"] = True, {}
    right = choices.verdict(found, {})
    assert right["ok"] and right["message"].endswith(
        "CUDA kernels, Triton on H100; all 0 operators tried ran"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device is 'tpu'; it may be 'cpu'"),
        (["--dtype", "int8"], "--dtype is 'int8'; it may be one of 'float32', 'bfloat16'"),
    ],
)
def test_what_it_cannot_be_asked_for(command, arguments, message):
    code, _, err = command("info", *arguments)
    assert code == 2 and message in err


def test_asking_for_a_gpu_without_one_says_so(monkeypatch, command):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = command("info", "--device", "cuda")
    assert code == 2 and "--device is 'cuda', and torch sees no GPU; it may be 'cpu'" in err


def test_a_gpu_is_shown_with_what_was_measured_on_it_and_the_variants_that_ran(command, monkeypatch):
    found = copy.deepcopy(hk.info())
    gpu = {"name": "H100", "capability": "9.0", "memory_gib": 79.2, "multiprocessors": 132}
    found |= {"gpus": [gpu], "variants_run": ["forward: epilogue, bfloat16 on cuda, tiles of the table"]}
    found["selection"] = {"package": {"H100": 7, "H200": 3}, "user": {}}
    monkeypatch.setattr(hk, "info", lambda: copy.deepcopy(found))
    _, out, _ = command("info", "--device", "cpu", "--dtype", "complex64")
    assert "H100, compute capability 9.0, 79.2 GiB" in out and "7 shapes by the package" in out
    assert "forward: epilogue, bfloat16 on cuda" in out
    found["selection"] = {"package": {"H200": 3}, "user": {}}
    _, out, _ = command("info", "--device", "cpu", "--dtype", "complex64")
    assert "nothing: hybrid-kernels bench tune" in out
