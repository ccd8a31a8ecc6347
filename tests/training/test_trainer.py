import json

import numpy as np
import pytest
from transformers import TrainerCallback

from hybrid_kernels.training import methods
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import load_nli
from hybrid_kernels.training.trainer import load_predictions, predict, train
from tests.training.support import HRA, HYBRID


class Stop(TrainerCallback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Steps(TrainerCallback):
    """The steps that were really taken."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.taken.append(state.global_step)


@pytest.fixture
def train_one(values, tiny_data):
    """Trains one method in a folder."""

    def run(method, folder, callbacks=(), key="key", **training):
        config = RunConfig.model_validate(
            values | {"methods": [method], "training": values["training"] | training}
        )
        tokenizer = methods.load_tokenizer(config.model.name)
        rows = [load_nli(tiny_data, split).rows for split in ("train", "test")]
        return train(config, config.methods[0], 0, tokenizer, *rows, folder, key, callbacks)

    return run


@pytest.mark.parametrize("method", ["lora", "hra", "hybrid"])
def test_interrupted_and_resumed_equals_uninterrupted(method, train_one, values, tmp_path):
    method = {"lora": values["methods"][0], "hra": HRA, "hybrid": HYBRID}[method]
    whole = train_one(method, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_one(method, tmp_path / "resumed", [Stop(5)])
    checkpoints = tmp_path / "resumed" / "checkpoints"
    assert (checkpoints / "checkpoint-4" / "trainer_state.json").is_file()
    # A checkpoint that was cut while it was written is passed over.
    cut = checkpoints / "checkpoint-5"
    cut.mkdir()
    (cut / "trainer_state.json").write_text('{"global_step": 5')
    steps = Steps()
    resumed = train_one(method, tmp_path / "resumed", [steps])
    assert steps.taken == [5, 6]
    assert resumed == whole
    first, second = (load_predictions(tmp_path / name / "predictions.npz") for name in ("whole", "resumed"))
    np.testing.assert_array_equal(first["probabilities"], second["probabilities"])
    assert not checkpoints.exists()


def test_training_learns_and_the_saved_adapter_predicts_the_same(train_one, values, tiny_data, tmp_path):
    for name, method in {"lora": values["methods"][0], "hybrid": HYBRID}.items():
        trained = train_one(method, tmp_path / name, steps=40)
        losses = [entry["loss"] for entry in trained.history]
        assert len(losses) == 40 and np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05
        tokenizer = methods.load_tokenizer(values["model"]["name"])
        # Another seed: everything that was trained has to come from the folder, the head too.
        loaded = methods.load_trained(
            tmp_path / name / "adapter", values["model"]["name"], tokenizer.pad_token_id, seed=99
        )
        rows = load_nli(tiny_data, "test").rows
        again = predict(loaded, tokenizer, rows, max_length=32, batch_size=7, description="")
        stored = load_predictions(tmp_path / name / "predictions.npz")
        np.testing.assert_allclose(again, stored["probabilities"], atol=1e-5)
        assert stored["ids"].tolist() == [row["id"] for row in rows]


def test_methods_see_the_same_data_in_the_same_order(train_one, values, tmp_path):
    seen = {}

    class Record(TrainerCallback):
        def __init__(self, name):
            self.name = name

        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            seen[self.name] = [batch["input_ids"].tolist() for batch in train_dataloader]

    for name, method in {"lora": values["methods"][0], "hra": HRA, "hybrid": HYBRID}.items():
        train_one(method, tmp_path / name, [Record(name)])
    assert seen["lora"] == seen["hra"] == seen["hybrid"]


def test_logged_loss_is_free_of_the_penalty(train_one, tmp_path):
    """Reflections start in equal pairs: ‖I − ÛᵀÛ‖_F = √2 in each of 4 layers, a penalty of 57 at weight 10."""
    strong = train_one(HYBRID | {"orthogonality_weight": 10.0}, tmp_path / "strong")
    none = train_one(HYBRID | {"orthogonality_weight": 0.0}, tmp_path / "none")
    assert strong.history[0]["loss"] == pytest.approx(none.history[0]["loss"], abs=1e-4)
    assert strong.history[-1]["loss"] != pytest.approx(none.history[-1]["loss"], abs=1e-4)
    assert max(entry["loss"] for entry in strong.history) < 3


def test_mixing_is_recorded_and_moves(train_one, tmp_path):
    history = train_one(HYBRID, tmp_path / "hybrid").mixing_history
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert len(history[0]["values"]) == 4
    assert history[0]["values"] != history[-1]["values"]


def test_another_key_starts_afresh(train_one, values, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_one(values["methods"][0], tmp_path, [Stop(5)], key="old")
    steps = Steps()
    train_one(values["methods"][0], tmp_path, [steps], key="new")
    assert steps.taken == [1, 2, 3, 4, 5, 6]


def test_predictions_are_in_the_order_of_the_rows(values, tiny_data):
    """Batches are sorted by length and padded; neither may show."""
    import torch

    tokenizer = methods.load_tokenizer(values["model"]["name"])
    model, _ = methods.load_classifier(values["model"]["name"], tokenizer.pad_token_id, seed=0)
    rows = load_nli(tiny_data, "test").rows
    rows = [row | {"premise": row["premise"][: 5 + 7 * (i % 4)]} for i, row in enumerate(rows)]
    found = predict(model, tokenizer, rows, max_length=32, batch_size=5, description="")
    for row, probabilities in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")).logits
        np.testing.assert_allclose(probabilities, logits[0].double().softmax(-1).numpy(), atol=1e-6)


def test_diverging_training_is_an_error(train_one, values, tmp_path):
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_one(values["methods"][0] | {"learning_rate": 1e30}, tmp_path, steps=20)


def test_missing_model_and_target(train_one, values, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        methods.load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"'lora'.*No modules were targeted"):
        train_one(values["methods"][0] | {"target_modules": ["nowhere"]}, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        methods.load_classifier(str(tmp_path / "empty"), 0, 0)
