import pytest

from tests.validation.support import product  # noqa: F401


@pytest.fixture
def command(command):
    """Runs `validate` in this process: (exit code, stdout, stderr)."""
    return lambda *arguments: command("validate", "--device", "cpu", *arguments)
