"""The choice of backend: automatic, requested, impossible."""

import logging
import os
import subprocess
import sys

import pytest

from hybrid_kernels import use_backend
from hybrid_kernels.ops import backend
from hybrid_kernels.ops.backend import Implementation, Operator


def small_operator(unsupported=lambda x: None) -> Operator:
    operator = Operator(
        "test_operator",
        Implementation("triton", lambda x: "triton", unsupported),
        Implementation("eager", lambda x: "eager"),
    )
    del backend.OPERATORS["test_operator"]
    return operator


def test_automatic_choice_takes_the_first_that_can() -> None:
    assert small_operator()(1) == "triton"


def test_fallback_says_why_once(caplog) -> None:
    operator = small_operator(lambda x: "it is Tuesday")
    with caplog.at_level(logging.INFO, logger="hybrid_kernels"):
        assert operator(1) == operator(1) == "eager"
    assert [r.getMessage() for r in caplog.records] == [
        "test_operator: not using backend 'triton': it is Tuesday"
    ]


def test_request_that_cannot_be_met_raises_with_the_reason() -> None:
    operator = small_operator(lambda x: "it is Tuesday")
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"'triton'.*test_operator.*it is Tuesday"):
        operator(1)


def test_request_for_another_backend_leaves_the_automatic_choice() -> None:
    with use_backend("reference"):
        assert small_operator()(1) == "triton"


def test_context_restores_and_call_stays() -> None:
    assert backend.current_backend() == "auto"
    with use_backend("eager"):
        with use_backend("reference"):
            assert backend.current_backend() == "reference"
        assert backend.current_backend() == "eager"
    assert backend.current_backend() == "auto"
    use_backend("eager")
    assert backend.current_backend() == "eager"
    use_backend("auto")


def test_variants_are_asked_for_and_restored() -> None:
    assert backend.current_variant() is None
    with use_backend("triton", variant="one_pass"):
        assert backend.current_variant() == "one_pass"
        with use_backend("triton"):
            assert backend.current_variant() is None
        assert backend.current_variant() == "one_pass"
    assert backend.current_variant() is None


def test_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match=r"'one_passs'.*'one_pass'"):
        use_backend("triton", variant="one_passs")
    wrong = run_python("import hybrid_kernels.functional", HYBRID_KERNELS_VARIANT="fast")
    assert "HYBRID_KERNELS_VARIANT is 'fast'" in wrong.stderr


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match=r"'tritno'.*'triton'"):
        use_backend("tritno")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_environment_variable() -> None:
    code = "import hybrid_kernels.ops.backend as b; print(b.current_backend())"
    assert run_python(code, HYBRID_KERNELS_BACKEND="eager").stdout.strip() == "eager"
    code = "import hybrid_kernels.ops.backend as b; print(b.current_variant())"
    assert run_python(code, HYBRID_KERNELS_VARIANT="epilogue").stdout.strip() == "epilogue"
    wrong = run_python(code, HYBRID_KERNELS_BACKEND="fast")
    assert "HYBRID_KERNELS_BACKEND is 'fast'" in wrong.stderr


def test_import_leaves_heavy_libraries_alone() -> None:
    heavy = ("transformers", "peft", "datasets", "matplotlib", "triton", "pandas", "sklearn", "rich", "typer")
    before = run_python(f"import sys, torch; print([m for m in {heavy} if m in sys.modules])").stdout
    after = run_python(f"import sys, hybrid_kernels; print([m for m in {heavy} if m in sys.modules])").stdout
    assert after == before  # whatever torch itself imports
