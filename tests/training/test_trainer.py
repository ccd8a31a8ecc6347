import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import TrainerCallback

from hybrid_kernels.training import methods
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import load_nli
from hybrid_kernels.training.tasks import task_of
from hybrid_kernels.training.trainer import predict, train
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

    def run(method, folder, callbacks=(), key="key", start=None, **training):
        config = RunConfig.model_validate(
            values | {"methods": [method], "training": values["training"] | training}
        )
        tokenizer = methods.load_tokenizer(config.model.name)
        rows = load_nli(tiny_data, "train").rows
        return train(
            config, config.methods[0], 0, tokenizer, rows, folder, key, start=start, callbacks=callbacks
        )

    return run


@pytest.mark.parametrize(
    ("method", "bucketed"), [("lora", False), ("hra", False), ("hybrid", False), ("lora", True)]
)
def test_interrupted_and_resumed_equals_uninterrupted(method, bucketed, train_one, values, tmp_path):
    method = {"lora": values["methods"][0], "hra": HRA, "hybrid": HYBRID}[method]
    train_one = partial(train_one, length_bucketed=bucketed)
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
    first, second = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("whole", "resumed")
    )
    assert first == second
    assert not checkpoints.exists()


@pytest.mark.parametrize("method", ["lora", "hybrid"])
def test_a_training_stopped_after_its_last_step_takes_no_further_one(
    method, train_one, values, tmp_path, monkeypatch
):
    """Eight steps end in the middle of the second epoch; the adapter could not be saved at first."""
    method = {"lora": values["methods"][0], "hybrid": HYBRID}[method]
    whole = train_one(method, tmp_path / "whole", steps=8)
    with monkeypatch.context() as patched:
        patched.setattr(methods, "save", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_one(method, tmp_path / "resumed", steps=8)
    assert train_one(method, tmp_path / "resumed", steps=8) == whole


def test_training_learns(train_one, values, tmp_path):
    for name, method in {"lora": values["methods"][0], "hybrid": HYBRID}.items():
        losses = [entry["loss"] for entry in train_one(method, tmp_path / name, steps=40).history]
        assert len(losses) == 40 and np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05


@pytest.mark.parametrize("method", ["lora", "hra", "hybrid"])
def test_a_later_stage_starts_where_the_earlier_one_ended(method, train_one, values, tmp_path):
    """At a learning rate of next to nothing it stays there, and all that was trained is trained on."""
    method = {"lora": values["methods"][0], "hra": HRA, "hybrid": HYBRID}[method]
    early = train_one(method, tmp_path / "early", steps=20)
    still = train_one(method | {"learning_rate": 1e-12}, tmp_path / "still", start=tmp_path / "early")
    onward = train_one(method, tmp_path / "onward", start=tmp_path / "early")
    assert still.trainable == onward.trainable == early.trainable
    before, same, after = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("early", "still", "onward")
    )
    # λ and its averages follow the gradients whatever the learning rate is.
    trained = [name for name in before if not name.endswith(("mixing", "gradient_norms"))]
    for name in trained:
        np.testing.assert_allclose(same[name], before[name], atol=1e-7)
    if method["method"] == "hybrid":
        # The gradient-aligned start is the earlier stage's, not made anew.
        (base,) = {len(after) for after in (before, same, after)}
        assert base == len(before)
    moved = [name for name in trained if not np.array_equal(after[name], before[name])]
    assert len(moved) >= len(early.trainable) - 4


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


def test_branch_gradient_norms_are_those_before_clipping(train_one, tmp_path):
    found = []
    for bound in (1e9, 1e-3):
        first = train_one(HYBRID, tmp_path / str(bound), steps=1, max_gradient_norm=bound).history[0]
        found.append(first)
        norms = first["branch_gradient_norms"]
        assert first["grad_norm"] > 0.01 and norms["low_rank"] > 0.01
        assert sum(norm**2 for norm in norms.values()) == pytest.approx(first["grad_norm"] ** 2, rel=1e-3)
    assert found[0]["branch_gradient_norms"] == pytest.approx(found[1]["branch_gradient_norms"], rel=1e-3)


def test_another_key_starts_afresh(train_one, values, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_one(values["methods"][0], tmp_path, [Stop(5)], key="old")
    steps = Steps()
    train_one(values["methods"][0], tmp_path, [steps], key="new")
    assert steps.taken == [1, 2, 3, 4, 5, 6]


def test_predictions_are_in_the_order_of_the_rows(values, tiny_data):
    """Batches are sorted by length and padded; neither may show."""
    import torch

    config = RunConfig.model_validate(values | {"evaluation": {"batch_size": 5}})
    tokenizer = methods.load_tokenizer(values["model"]["name"])
    model, _ = task_of(RunConfig.model_validate(values)).load_model(tokenizer, 0)
    rows = load_nli(tiny_data, "test").rows
    rows = [row | {"premise": row["premise"][: 5 + 7 * (i % 4)]} for i, row in enumerate(rows)]
    found = predict(task_of(config), model, tokenizer, rows, method=config.methods[0])
    assert found["log_probabilities"].dtype == np.float32
    for row, log_probabilities in zip(rows, found["log_probabilities"], strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")).logits
        np.testing.assert_allclose(log_probabilities, logits[0].double().log_softmax(-1).numpy(), atol=1e-5)
    for name, column in (("ids", "id"), ("items", "item"), ("languages", "language"), ("labels", "label")):
        assert found[name].tolist() == [row[column] for row in rows]


def test_callbacks_add_to_the_history(train_one, values, tmp_path):
    class Measure(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            # The Trainer adds the logs to its history before it calls this.
            if "loss" in logs:
                state.log_history[-1]["defect"] = {"layer": state.global_step / 2}

    history = train_one(values["methods"][0], tmp_path, [Measure()]).history
    assert [entry["defect"] for entry in history] == [{"layer": step / 2} for step in range(1, 7)]
    assert all(entry["grad_norm"] > 0 for entry in history)
    # One step of warm-up from 0, then a straight line down.
    assert [entry["learning_rate"] for entry in history] == pytest.approx(
        [0.0, *(0.003 * (6 - step) / 5 for step in range(1, 6))]
    )


def test_tensorboard_events(train_one, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        train_one(HYBRID, tmp_path, [Stop(5)], tensorboard=True)
    trained = train_one(HYBRID, tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = events.Scalars("train/loss")
    # Each step once, also those before the interruption.
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([e.value for e in losses], [e["loss"] for e in trained.history], rtol=1e-6)
    layers = {f"mixing/{layer}" for layer in trained.mixing_history[0]["values"]}
    assert len(layers) == 4 and layers <= set(events.Tags()["scalars"])


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


@pytest.mark.parametrize(
    "method",
    [
        {"method": "full"},
        {"method": "lora", "r": 4, "alpha": 8, "target_modules": ["query", "value"], "accelerate": True},
        HRA | {"accelerate": True},
        {"method": "boft", "block_size": 8, "target_modules": ["query", "value"]},
        {"method": "urnn", "target_modules": ["query", "value"]},
        HYBRID | {"unitary_modules": ["value"]},
    ],
    ids=lambda method: method["method"],
)
def test_training_in_bfloat16_learns_and_keeps_float32_weights(method, train_one, tmp_path):
    """The products are in bfloat16, not the parameters nor what is saved."""
    dtypes = set()

    class Record(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            # The output of a layer that no method adapts.
            name = next(name for name, _ in model.named_modules() if name.endswith("layer.0.output.dense"))
            model.get_submodule(name).register_forward_hook(lambda *call: dtypes.add(call[2].dtype))
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    rate = {"learning_rate": 1e-3 if method["method"] == "full" else 1e-2}
    found = train_one(method | rate, tmp_path, [Record()], steps=40, precision="bfloat16")
    losses = [entry["loss"] for entry in found.history]
    assert dtypes == {torch.bfloat16}
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05
    saved = [load_file(path) for path in (tmp_path / "adapter").glob("*.safetensors")]
    # And the uRNN's permutation.
    assert {values.dtype.name for one in saved for values in one.values()} - {"int64"} == {"float32"}
