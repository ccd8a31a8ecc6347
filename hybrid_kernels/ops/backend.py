"""Which implementation of an operator runs: chosen per operator, device, dtype and shape, overridable by the user.

An `Operator` holds its implementations in order of preference. Left to itself it takes the first one that accepts the
input, and says once, in a log record at INFO level, why a faster one could not be used. `use_backend` or the
environment variable ``HYBRID_KERNELS_BACKEND`` ask for one backend by name: an operator that has an implementation of
that name then uses it or raises with the reason; an operator that has none of that name keeps its automatic choice.
The Triton backend has variants of some operations, chosen from measurements (`triton_ops.selection`); one can be asked
for by name along with the backend, or in ``HYBRID_KERNELS_VARIANT``, and goes where an operation has it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from triton_ops import selection

logger = logging.getLogger("hybrid_kernels")

BACKENDS = {
    "auto": "the fastest implementation that accepts the input",
    "reference": "hybrid_kernels.reference, differentiated by autograd",
    "eager": "the factor form in ATen calls",
    "triton": "Triton kernels (a GPU, or the interpreter with TRITON_INTERPRET=1)",
    "cpp": "the compiled C++ extension, on the CPU",
    "cuda": "the compiled CUDA extension, on the GPU",
}
ENVIRONMENT_VARIABLE = "HYBRID_KERNELS_BACKEND"
VARIANT_VARIABLE = "HYBRID_KERNELS_VARIANT"
VARIANTS = sorted({variant for variants in selection.VARIANTS.values() for variant in variants})


def gpu_wins(operator: str, like: Any, m: int, k: int, n: int, r: int, exact: bool = False) -> bool:
    """``automatic`` of kernels on a GPU: only where a measurement there showed them to beat plain PyTorch.

    M = m, K = k, N = n and rank r are the operator's shape, 1 for what it does not have; ``exact`` if it takes no TF32.
    """
    return like.is_cuda and selection.wins(operator, like, m, k, n, r, exact)


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    ``unsupported(*args)`` is given the operator's arguments and returns None, or why they cannot be handled.
    ``automatic`` says whether it may be chosen without being asked for by name.
    """

    backend: str
    function: Callable[..., Any]
    unsupported: Callable[..., str | None] = lambda *args: None
    automatic: Callable[..., bool] = lambda *args: True


OPERATORS: dict[str, Operator] = {}


class BackendError(RuntimeError):
    """The backend asked for by name cannot run an operator for this input; the message says why, as does ``reason``."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Choices:
    """Records, within a block, which backend each operator chose: ``made`` is {(operator, backend)}.

    ``reasons`` is {(operator, backend): why a backend that could have been chosen unasked was not}. Process-wide, as
    the choice itself: backwards run in other threads. Blocks do not nest.
    """

    def __init__(self) -> None:
        self.made: set[tuple[str, str]] = set()
        self.reasons: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Choices:
        global _recorder
        if _recorder is not None:
            raise RuntimeError("choices are being recorded already; such blocks do not nest")
        _recorder = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _recorder
        _recorder = None


_recorder: Choices | None = None


class Operator:
    """A named operator and its implementations, the preferred one first, the one that takes everything last."""

    def __init__(self, name: str, *implementations: Implementation) -> None:
        self.name = name
        self.implementations = implementations
        self._explained: set[tuple[str, str]] = set()
        OPERATORS[name] = self

    def select(self, *args: Any) -> Implementation:
        """The implementation that runs for these arguments; raises BackendError where the requested one cannot."""
        requested = _requested
        for implementation in self.implementations if requested != "auto" else ():
            if implementation.backend == requested:
                reason = implementation.unsupported(*args)
                if reason is not None:
                    raise BackendError(
                        f"backend {requested!r} was requested but cannot run {self.name}: {reason}. "
                        "Use use_backend('auto') to let the package choose.",
                        reason,
                    )
                return self._chosen(implementation)
        for implementation in self.implementations[:-1]:
            if implementation.automatic(*args):
                reason = implementation.unsupported(*args)
                if reason is None:
                    return self._chosen(implementation)
                self._explain(implementation.backend, reason)
        return self._chosen(self.implementations[-1])

    def _chosen(self, implementation: Implementation) -> Implementation:
        if _recorder is not None:
            _recorder.made.add((self.name, implementation.backend))
        return implementation

    def __call__(self, *args: Any) -> Any:
        return self.select(*args).function(*args)

    def _explain(self, backend: str, reason: str) -> None:
        if _recorder is not None:
            _recorder.reasons[self.name, backend] = reason
        if (backend, reason) not in self._explained:
            self._explained.add((backend, reason))
            logger.info("%s: not using backend %r: %s", self.name, backend, reason)


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{where} is {name!r}; it may be one of {', '.join(map(repr, BACKENDS))}")
    return name


def _checked_variant(name: str | None, where: str) -> str | None:
    if name is not None and name not in VARIANTS:
        raise ValueError(f"{where} is {name!r}; it may be one of {', '.join(map(repr, VARIANTS))}")
    return name


# Process-wide, not per thread: autograd runs the backward of CUDA operators in threads of its own.
_requested = _checked(
    os.environ.get(ENVIRONMENT_VARIABLE) or "auto", f"environment variable {ENVIRONMENT_VARIABLE}"
)

_variant = _checked_variant(
    os.environ.get(VARIANT_VARIABLE) or None, f"environment variable {VARIANT_VARIABLE}"
)


def current_variant() -> str | None:
    """The variant of Triton kernels asked for by `use_backend`, else by the environment variable at import, or None."""
    return _variant


def current_backend() -> str:
    """The name asked for by `use_backend`, else by the environment variable at import, else "auto"."""
    return _requested


class use_backend:
    """Ask for a backend by name, for the whole process, from now on or, as a context manager, within a block.

    ``name``: "auto", "reference", "eager", "triton", "cpp" or "cuda". ``variant``: of the Triton kernels, such as
    "one_pass", "epilogue" or "addmm" (`triton_ops.selection.VARIANTS`), None for the measured choice; an operation that
    has no variant of that name keeps its own. Raises ValueError for another name and RuntimeError, with the reason, for
    a backend that this machine does not have at all.

        hk.use_backend("eager")
        with hk.use_backend("triton", variant="epilogue"):
            ...
    """

    def __init__(self, name: str, variant: str | None = None) -> None:
        global _requested, _variant
        _checked(name, "use_backend(name)")
        _checked_variant(variant, "use_backend(variant)")
        reason = unavailable(name)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} is not available here: {reason}")
        self._previous = _requested, _variant
        _requested, _variant = name, variant

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _requested, _variant
        _requested, _variant = self._previous


def unavailable(backend: str) -> str | None:
    """None, or why this machine cannot run the backend for any input."""
    if backend == "triton":
        import triton_ops

        return triton_ops.unavailable()
    if backend == "cpp":
        from hybrid_kernels import _extension

        return _extension.load()
    if backend == "cuda":
        from hybrid_kernels import _extension

        return _extension.cuda_unavailable()
    return None
