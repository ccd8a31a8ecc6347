"""Gradient-aligned initialisation, mixing and penalties: the formulas."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from hybrid_kernels.adapters import (
    GradientNormMixing,
    HybridConfig,
    HybridTrainer,
    initialize_gradient_aligned,
    mixing_values,
    norm_preservation_defects,
    norm_preservation_penalty,
    orthogonality_penalty,
)
from hybrid_kernels.nn import HybridLinear


class TwoLayers(nn.Module):
    """A small hybrid network in float32 whose weight gradients can be had from autograd."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = HybridLinear(nn.Linear(20, 24), rank=3, reflections=4)
        self.second = HybridLinear(nn.Linear(24, 10), rank=3, reflections=4)
        self.unused = HybridLinear(nn.Linear(20, 12), rank=3, reflections=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(50, 20), torch.randn(50, 10)) for _ in range(2)]


def weight_gradient(model: TwoLayers, layer: HybridLinear, batches) -> torch.Tensor:
    layer.base_layer.requires_grad_(True)
    total = sum(torch.autograd.grad(loss_fn(model, b), layer.base_layer.weight)[0] for b in batches)
    layer.base_layer.requires_grad_(False)
    return total


def test_gradient_aligned_start_is_algorithm_1(batches) -> None:
    model = TwoLayers()
    gradients = {name: weight_gradient(model, getattr(model, name), batches) for name in ("first", "second")}
    before = model(batches[0][0])
    done = initialize_gradient_aligned(model, batches, loss_fn=loss_fn, iterations=2, progress=False)
    assert done == ["first", "second"]
    torch.testing.assert_close(model(batches[0][0]), before)
    for name, gradient in gradients.items():
        layer = getattr(model, name)
        r, out = 3, layer.out_features
        u, _, vt = torch.linalg.svd(gradient)
        scale = out**0.25 / 16.0**0.5
        # Singular vectors have no sign: compare the projectors of A₀ on each right vector, of B₀ on each left one.
        a, b = layer.adapter.lora_A_start / scale, layer.adapter.lora_B_start / scale
        torch.testing.assert_close((a @ vt[:r].T).abs(), torch.eye(r), rtol=0, atol=1e-3)
        torch.testing.assert_close((u[:, r : 2 * r].T @ b).abs(), torch.eye(r), rtol=0, atol=1e-3)
        assert torch.equal(layer.adapter.lora_A, layer.adapter.lora_A_start)
        assert torch.equal(layer.adapter.lora_B, layer.adapter.lora_B_start)


def test_first_update_follows_the_gradient(batches) -> None:
    """The point of LoRA-GA: one step on A and B moves W against G more than the usual start does."""

    def alignment(aligned: bool) -> float:
        model = TwoLayers()
        gradient = weight_gradient(model, model.first, batches)
        if aligned:
            initialize_gradient_aligned(model, batches, loss_fn=loss_fn, progress=False)
        adapter = model.first.adapter
        adapter.mixing.fill_(1.0)
        loss = sum(loss_fn(model, b) for b in batches)
        d_a, d_b = torch.autograd.grad(loss, (adapter.lora_A, adapter.lora_B))
        update = -(adapter.lora_B @ d_a + d_b @ adapter.lora_A)
        return -float((update * gradient).sum().detach() / (update.norm() * gradient.norm()).detach())

    assert alignment(True) > alignment(False) + 0.1


def test_initialisation_leaves_gradients_and_mode_alone(batches) -> None:
    model = TwoLayers().train()
    model.second.eval()
    kept = torch.ones_like(model.first.adapter.lora_A)
    model.first.adapter.lora_A.grad = kept
    initialize_gradient_aligned(model, batches, loss_fn=loss_fn, progress=False)
    assert model.first.adapter.lora_A.grad is kept and model.first.adapter.lora_B.grad is None
    assert model.first.training and not model.second.training
    assert not model.first._forward_hooks
    assert not model.unused.adapter.lora_B.any()  # a layer without gradient keeps its usual start


def test_initialisation_with_gradient_checkpointing_is_the_same(make_base, batch) -> None:
    starts = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = get_peft_model(make_base(), HybridConfig(r=4, reflections=4, target_modules=["query"]))
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        initialize_gradient_aligned(model, [batch], progress=False)
        adapters = [m.adapter("default") for m in model.modules() if hasattr(m, "hybrid_adapters")]
        starts.append(torch.stack([a.lora_A_start for a in adapters]))
    torch.testing.assert_close(starts[0].abs(), starts[1].abs(), rtol=1e-3, atol=1e-4)


def test_initialisation_errors(batches) -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        initialize_gradient_aligned(TwoLayers(), [], loss_fn=loss_fn)
    with pytest.raises(ValueError, match="2r = 12 exceeds its smaller side 10"):
        model = TwoLayers()
        model.second = HybridLinear(nn.Linear(24, 10), rank=6, reflections=4)
        initialize_gradient_aligned(model, batches, loss_fn=loss_fn)
    with pytest.raises(ValueError, match="must be a finite scalar"):
        initialize_gradient_aligned(
            TwoLayers(), batches, loss_fn=lambda m, b: m(b[0]).sum() * torch.nan, progress=False
        )
    with pytest.raises(ValueError, match="has no hybrid adapter"):
        initialize_gradient_aligned(nn.Linear(2, 2), batches)
    with pytest.raises(ValueError, match="frozen"):
        initialize_gradient_aligned(TwoLayers().requires_grad_(False), batches, loss_fn=loss_fn)


def rms(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors]).square().mean().sqrt()


def test_mixing_follows_the_formula_over_two_steps(batches) -> None:
    model = TwoLayers()
    mixing = GradientNormMixing(decay=0.8, minimum=0.05, maximum=0.95)
    adapter = model.first.adapter
    average, coefficient = torch.zeros(2), torch.tensor(0.5)
    for batch in batches:
        model.zero_grad()
        loss_fn(model, batch).backward()
        low_rank = rms(adapter.lora_A.grad, adapter.lora_B.grad) / coefficient
        orthogonal = rms(adapter.householder_u.grad) / (1 - coefficient)
        average = 0.8 * average + 0.2 * torch.stack([low_rank, orthogonal])
        coefficient = (average[0] / average.sum()).clamp(0.05, 0.95)
        mixing.step(model)
        torch.testing.assert_close(adapter.mixing, coefficient)
    assert adapter.mixing != 0.5
    assert mixing_values(model)["first"] == pytest.approx(float(coefficient))
    assert model.unused.adapter.mixing == 0.5  # no gradient, no move


def test_mixing_does_not_depend_on_where_it_stands(batches) -> None:
    values = []
    for start in (0.3, 0.7):
        model = TwoLayers()
        model.first.adapter.mixing.fill_(start)
        loss_fn(model, batches[0]).backward()
        GradientNormMixing(minimum=0.0, maximum=1.0).step(model)
        values.append(float(model.first.adapter.mixing))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_mixing_bounds_overflow_and_fixed_rule(batches) -> None:
    model = TwoLayers()
    model.second = HybridLinear(nn.Linear(24, 10), rank=3, reflections=4, mixing="fixed", mixing_value=0.2)
    loss_fn(model, batches[0]).backward()
    GradientNormMixing(minimum=0.6, maximum=0.7).step(model)
    assert 0.6 <= float(model.first.adapter.mixing) <= 0.7001
    assert float(model.second.adapter.mixing) == pytest.approx(0.2)
    before = model.first.adapter.mixing.clone()
    model.first.adapter.lora_B.grad.fill_(float("inf"))
    GradientNormMixing(minimum=0.0, maximum=1.0).step(model)
    assert torch.isfinite(model.first.adapter.gradient_norms).all()
    torch.testing.assert_close(
        model.first.adapter.mixing.clamp(0.6, 0.7), before
    )  # from the averages of the good step
    with pytest.raises(ValueError, match="decay is 1"):
        GradientNormMixing(decay=1.0)
    with pytest.raises(ValueError, match="minimum, maximum are"):
        GradientNormMixing(minimum=0.9, maximum=0.1)


def trainer_parts(make_base, batch, tmp_path):
    from transformers import TrainingArguments

    model = get_peft_model(make_base(), HybridConfig(r=4, reflections=4, target_modules=["query"]))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], disable_tqdm=True
    )
    return model, arguments, [{k: v[i] for k, v in batch.items()} for i in range(6)]


def test_trainer_callback_runs_before_the_optimizer(make_base, batch, tmp_path) -> None:
    from transformers import Trainer

    model, arguments, rows = trainer_parts(make_base, batch, tmp_path)
    Trainer(model, arguments, train_dataset=rows, callbacks=[GradientNormMixing()]).train()
    assert all(value != 0.5 for value in mixing_values(model).values())


def test_hybrid_trainer_adds_mixing_and_penalties(make_base, batch, tmp_path) -> None:
    model, arguments, rows = trainer_parts(make_base, batch, tmp_path)
    trainer = HybridTrainer(
        model, arguments, train_dataset=rows, orthogonality_weight=0.3, norm_preservation_weight=0.1
    )
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "hybrid_adapters"):
                module.adapter("default").householder_u.normal_()
    trainer.train()
    assert all(value != 0.5 for value in mixing_values(model).values())
    model.eval()
    plain = float(trainer.compute_loss(model, batch))
    assert plain == pytest.approx(float(model(**batch).loss))
    model.train()
    torch.manual_seed(0)
    with_penalty = float(trainer.compute_loss(model, batch))
    torch.manual_seed(0)
    without = float(model(**batch).loss)
    expected = 0.3 * orthogonality_penalty(model) + 0.1 * norm_preservation_penalty(model)
    assert with_penalty - without == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ValueError, match="orthogonality_weight is -1"):
        HybridTrainer(model, arguments, orthogonality_weight=-1.0)


def test_hybrid_trainer_leaves_other_models_alone(make_base, batch, tmp_path) -> None:
    from peft import LoraConfig

    _, arguments, rows = trainer_parts(make_base, batch, tmp_path)
    model = get_peft_model(make_base(), LoraConfig(r=4, target_modules=["query"]))
    trainer = HybridTrainer(model, arguments, train_dataset=rows, orthogonality_weight=0.3)
    assert not trainer.is_hybrid and trainer.penalty(model) is None
    trainer.train()


def test_orthogonality_penalty() -> None:
    model = TwoLayers()
    columns = torch.linalg.qr(torch.randn(20, 4)).Q
    for layer in (model.first, model.unused):
        layer.adapter.householder_u.data = columns * torch.tensor([1.0, 2.0, 0.5, 3.0])
    model.second.adapter.householder_u.data = torch.linalg.qr(torch.randn(24, 4)).Q
    assert float(orthogonality_penalty(model)) == pytest.approx(0.0, abs=1e-5)
    u = torch.randn(20, 4)
    model.first.adapter.householder_u.data = u
    unit = u / u.norm(dim=0)
    expected = (torch.eye(4) - unit.T @ unit).norm()
    torch.testing.assert_close(orthogonality_penalty(model), expected, rtol=1e-4, atol=1e-4)
    orthogonality_penalty(model).backward()
    assert model.first.adapter.householder_u.grad.any()


def test_norm_preservation_defect_is_that_of_the_dense_mixture() -> None:
    model = TwoLayers().double()
    for value, layer in ((0.5, model.first), (0.2, model.second), (0.7, model.unused)):
        layer.adapter.mixing.fill_(value)
        layer.adapter.householder_u.data.normal_()
    defects = norm_preservation_defects(model)
    total = 0.0
    for name in ("first", "second", "unused"):
        adapter = getattr(model, name).adapter
        h = torch.eye(adapter.householder_u.shape[0], dtype=torch.float64)
        for column in adapter.householder_u.detach().T:
            h = h - 2 * torch.outer(h @ column, column) / (column @ column)
        c = adapter.mixing * torch.eye(h.shape[0]) + (1 - adapter.mixing) * h
        truth = float((c.T @ c - torch.eye(h.shape[0])).norm())
        assert defects[name] == pytest.approx(truth, rel=1e-6)
        total += truth
    assert float(norm_preservation_penalty(model)) == pytest.approx(total, rel=1e-6)
    norm_preservation_penalty(model).backward()
    assert torch.isfinite(model.first.adapter.householder_u.grad).all()


def test_norm_preservation_has_a_gradient_at_the_paired_start() -> None:
    model = TwoLayers()
    norm_preservation_penalty(model).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
