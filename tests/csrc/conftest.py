"""What the tests of the compiled kernels share."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tests that are about threads set their own number."""
