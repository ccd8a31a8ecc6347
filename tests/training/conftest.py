from tests.training.support import tiny_data, tiny_model, values, write_config  # noqa: F401
