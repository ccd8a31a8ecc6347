"""Gradient-aligned initialisation of the low-rank branch (LoRA-GA, Wang et al., arXiv 2407.05000, Algorithm 1).

For the loss gradient G = U S Vᵀ of a layer's weight (N, K):

    A₀ = V[:, :r]ᵀ · N^¼/√γ        B₀ = U[:, r:2r] · N^¼/√γ        update λ s (B A − B₀ A₀), s = α/√r

so that the first step of A and B follows the gradient, and the start is exactly the pretrained function for every λ.

G = Σ dYᵀX over the tokens of some batches is never formed. Its leading singular vectors come from a randomised range
finder with power iterations (Halko, Martinsson and Tropp, 2011, Algorithm 4.4), each product G Ω or Gᵀ Q gathered
layer by layer during one backward over the batches: 2 + 2·iterations passes, and O(r (N + K)) floats a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_kernels.adapters.layers import require_adapters

Batch = Any

OVERSAMPLING = 16


def initialize_gradient_aligned(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss_fn: Callable[[nn.Module, Batch], Tensor] | None = None,
    adapter_name: str | None = None,
    gamma: float = 16.0,
    iterations: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> list[str]:
    """Give every hybrid layer of ``model`` the start that LoRA-GA derives from the loss gradient of a few batches.

    Call it once, after `get_peft_model` (or on a model with `HybridLinear` layers) and before training. The model's
    outputs do not change, whatever λ does later; base weights, gradients, and training mode are left as they were. The
    start travels with the adapter's checkpoint, which loads on the pristine base model.

    Args:
        batches: a few batches; all are kept for the passes. By default dicts for ``model(**batch).loss``.
        loss_fn: (model, batch) ↦ scalar loss, for other models or batches.
        adapter_name: of PEFT models; None for the active adapter.
        gamma: γ, the paper's stable-scaling constant.
        iterations: power iterations of the randomised SVD.
        seed: of its random test matrix.

    Returns the names of the layers that were initialised; a layer the loss does not depend on keeps its usual start.
    Raises ValueError where r is 0 or 2r exceeds a layer's smaller side, for no batches, or a loss that is no finite
    scalar.
    """
    found = require_adapters(model, adapter_name)
    data = list(batches)
    if not data:
        raise ValueError("batches is empty; at least one batch is needed for a gradient")
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}; it must be greater than 0")
    for name, layer, adapter in found:
        if not adapter.rank:
            raise ValueError(
                f"layer {name}: rank is 0; gradient-aligned initialisation needs a low-rank branch"
            )
        if 2 * adapter.rank > min(layer.in_features, layer.out_features):
            raise ValueError(
                f"layer {name}: gradient-aligned initialisation takes 2r singular vectors, but 2r = {2 * adapter.rank} "
                f"exceeds its smaller side {min(layer.in_features, layer.out_features)}; use a smaller rank"
            )
        if not any(p.requires_grad for p in adapter.parameters()):
            raise ValueError(f"layer {name}: the adapter is frozen; make it active and trainable first")

    passes = _Passes(model, [(name, layer) for name, layer, _ in found], data, loss_fn, iterations, progress)
    left, right = _singular_vectors([adapter.rank for _, _, adapter in found], passes, iterations, seed)
    done = []
    for (name, layer, adapter), u, v in zip(found, left, right, strict=True):
        if u is None or v is None:
            continue
        r, scale = adapter.rank, layer.out_features**0.25 / gamma**0.5
        adapter.set_start(v[:, :r].T * scale, u[:, r : 2 * r] * scale)
        done.append(name)
    for _, _, adapter in found:
        if adapter.lora_A_start is None:  # every layer of a checkpoint has the same tensors
            adapter.set_start(adapter.lora_A, adapter.lora_B)
    _mark_config(model, adapter_name)
    return done


def _mark_config(model: nn.Module, adapter_name: str | None) -> None:
    for name, config in getattr(model, "peft_config", {}).items():
        if name == adapter_name or (adapter_name is None and name in _active(model)):
            config.gradient_aligned = True


def _active(model: Any) -> list[str]:
    active = model.active_adapters
    return active if isinstance(active, list) else list(active())


def _singular_vectors(
    ranks: list[int], passes: _Passes, iterations: int, seed: int
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Leading left (N, ≥2r) and right (K, ≥2r) singular vectors of each layer's G; None where G is zero."""
    generator = torch.Generator().manual_seed(seed)
    test = []
    for (_, layer), rank in zip(passes.layers, ranks, strict=True):
        width = min(2 * rank + OVERSAMPLING, layer.in_features, layer.out_features)
        test.append(torch.randn(layer.in_features, width, generator=generator))
    sketch = passes.left(test)  # G Ω
    for _ in range(iterations):
        sketch = passes.left(_orthonormal(passes.right(_orthonormal(sketch))))
    basis = _orthonormal(sketch)
    projected = passes.right(basis)  # Gᵀ Q, so that G ≈ Q (Gᵀ Q)ᵀ
    left: list[Tensor | None] = []
    right: list[Tensor | None] = []
    for q, z in zip(basis, projected, strict=True):
        if not bool(z.any()):
            left.append(None)
            right.append(None)
            continue
        v, _, ut = torch.linalg.svd(z, full_matrices=False)  # z = v S ut, G ≈ (q utᵀ) S vᵀ
        left.append(q @ ut.T)
        right.append(v)
    return left, right


def _orthonormal(matrices: list[Tensor]) -> list[Tensor]:
    return [torch.linalg.qr(m).Q for m in matrices]


class _Passes:
    """Products with the weight gradients of all layers at once, each from one backward over the batches."""

    def __init__(
        self,
        model: nn.Module,
        layers: list[tuple[str, Any]],
        batches: list[Batch],
        loss_fn: Callable[[nn.Module, Batch], Tensor] | None,
        iterations: int,
        progress: bool,
    ) -> None:
        from tqdm.auto import tqdm

        self.model, self.layers, self.batches = model, layers, batches
        self.loss_fn = loss_fn or _model_loss
        self.bar = tqdm(
            total=(2 + 2 * iterations) * len(batches),
            desc="gradient-aligned initialisation",
            unit="batch",
            disable=not progress,
        )

    def left(self, z: list[Tensor]) -> list[Tensor]:
        """G z for z (K, q) of each layer: dYᵀ (X z)."""
        return self._run(z, lambda dy, x, m: dy.T @ (x @ m))

    def right(self, z: list[Tensor]) -> list[Tensor]:
        """Gᵀ z for z (N, q) of each layer: Xᵀ (dY z)."""
        return self._run(z, lambda dy, x, m: x.T @ (dy @ m))

    def _run(self, z: list[Tensor], product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        sums: list[Tensor | None] = [None] * len(z)

        def watch(index: int) -> Callable[..., None]:
            def forward_hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                if not output.requires_grad:
                    return  # the first, gradient-free run of a checkpointed segment
                x = inputs[0].detach()

                def backward_hook(dy: Tensor) -> None:
                    rows_dy, rows_x = (t.reshape(-1, t.shape[-1]).float() for t in (dy, x))
                    matrix = z[index] = z[index].to(rows_x.device)
                    term = product(rows_dy, rows_x, matrix)
                    previous = sums[index]
                    sums[index] = term if previous is None else previous + term

                output.register_hook(backward_hook)

            return forward_hook

        handles = [layer.register_forward_hook(watch(i)) for i, (_, layer) in enumerate(self.layers)]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        kept = [p.grad for p in parameters]
        training = {module: module.training for module in self.model.modules()}
        try:
            self.model.eval()  # dropout would draw another gradient in every pass
            with torch.enable_grad():
                for batch in self.batches:
                    loss = self.loss_fn(self.model, batch)
                    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss)):
                        raise ValueError(f"the loss is {loss!r}; it must be a finite scalar tensor")
                    loss.backward()
                    for p in parameters:
                        p.grad = None
                    self.bar.update()
        finally:
            for handle in handles:
                handle.remove()
            for p, gradient in zip(parameters, kept, strict=True):
                p.grad = gradient
            for module, mode in training.items():
                module.training = mode
        # A layer the loss does not reach has the zero gradient.
        shapes = [
            (layer.out_features if m.shape[0] == layer.in_features else layer.in_features, m.shape[1])
            for (_, layer), m in zip(self.layers, z, strict=True)
        ]
        return [
            torch.zeros(shape) if total is None else total for shape, total in zip(shapes, sums, strict=True)
        ]


def _model_loss(model: nn.Module, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    loss = getattr(model(**moved), "loss", None)
    if loss is None:
        raise ValueError("model(**batch) returned no loss; put labels into the batches or pass loss_fn")
    return loss
