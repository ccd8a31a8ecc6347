"""What the tests of acceleration share."""

import pytest

from hybrid_kernels.adapters.acceleration import groups


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def shared_calls(monkeypatch) -> list[int]:
    """How many layers each call of the shared operator took."""
    calls: list[int] = []
    operator = groups.functional.low_rank_linear_many

    def counted(x, weights, *rest):
        calls.append(len(weights))
        return operator(x, weights, *rest)

    monkeypatch.setattr(groups.functional, "low_rank_linear_many", counted)
    return calls
