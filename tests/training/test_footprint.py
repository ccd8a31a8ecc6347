import pytest

from hybrid_kernels.adapters.layers import named_adapters
from hybrid_kernels.training import footprint, methods
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import load_nli
from hybrid_kernels.training.tasks import task_of
from hybrid_kernels.training.trainer import batches
from tests.training.support import HYBRID


@pytest.mark.parametrize(
    "method",
    [
        {"method": "lora_ga", "r": 4, "alpha": 8, "target_modules": ["query", "value"]},
        HYBRID,
        HYBRID | {"gradient_aligned": False},
        HYBRID | {"r": 0, "gradient_aligned": False},
    ],
    ids=["lora_ga", "hybrid", "unaligned", "reflections"],
)
def test_what_is_measured_is_what_is_trained(method, values, tiny_data):
    """The same factors, with the frozen start of a gradient-aligned branch, which costs time and memory."""
    config = RunConfig.model_validate(values | {"methods": [method]})
    (own,) = config.methods
    task, tokenizer = task_of(config), methods.load_tokenizer(config.model.name)
    trained = methods.add_adapter(*task.load_model(tokenizer, 0), own, 0, task.kind)
    examples, _ = task.examples(tokenizer, load_nli(tiny_data, "train").rows)
    methods.initialize(trained, own, batches(task, tokenizer, examples, 8, "cpu"))
    measured = footprint._adapted(config, (method["method"], False), *task.load_model(tokenizer, 0))
    ranks = [[adapter.total_rank for _, _, adapter in named_adapters(model)] for model in (trained, measured)]
    assert ranks[0] == ranks[1] and ranks[0]
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()} for model in (trained, measured)
    ]
    assert shapes[0] == shapes[1]
