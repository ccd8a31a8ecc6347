from tests.validation.support import product  # noqa: F401
