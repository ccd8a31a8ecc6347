"""The parameters of one hybrid adapter and the factors they make: W' = W + λ s (B A − B₀ A₀) + (1 − λ)(W H − W).

A, B are the low-rank branch (A₀, B₀ its frozen start under gradient-aligned initialisation), H = H₁…Hₙ the chain of
reflections, λ the mixing coefficient, s = α/√r the scaling; where asked for, a Cayley rotation Q of the input comes
first: y = (x Q) W'ᵀ + b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels.nn.rotations import CayleyRotation, check_reflections, paired_reflections, rotation_blocks

MIXING_RULES = ("gradient_norm", "fixed", "learned")


class HybridAdapter(nn.Module):
    """The trainable state of a hybrid adapter for a layer with ``in_features`` and ``out_features``.

    Args:
        rank: r of the low-rank branch, 0 ≤ r ≤ min(in_features, out_features).
        reflections: n of the Householder branch, even, 0 ≤ n ≤ in_features. With r = 0 or n = 0 (not both) there is one
            branch and nothing to mix: λ is 0 or 1, and stays, whatever ``mixing`` says.
        alpha: α of the scaling s = α/√r.
        mixing: how λ moves. "gradient_norm": set by `hybrid_kernels.adapters.GradientNormMixing` from the branches'
            gradients; "fixed": stays at ``mixing_value``; "learned": λ = sigmoid(mixing_logit), trained.
        mixing_value: λ at the start, in [0, 1] ("learned": strictly between).
        dropout: probability of an element of x to be dropped before the low-rank branch, in training only; the
            reflections see x as it is.
        unitary_block_size: block size of the Cayley rotation of the input; None for no rotation.
        unitary_complex: complex (unitary) blocks on pairs of features instead of real (orthogonal) ones.

    The start is exactly the base layer: B = 0, reflections in equal pairs, skew = 0.
    Parameters: lora_A (r, in), lora_B (out, r), householder_u (in, n), and where asked for cayley_skew, mixing_logit.
    Buffers: mixing (λ, 0-dim), gradient_norms (2,), and lora_A_start, lora_B_start once gradient-aligned.
    """

    lora_A_start: Tensor | None
    lora_B_start: Tensor | None
    mixing: Tensor
    gradient_norms: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int = 16,
        reflections: int = 16,
        alpha: float = 16.0,
        mixing: str = "gradient_norm",
        mixing_value: float = 0.5,
        dropout: float = 0.0,
        unitary_block_size: int | None = None,
        unitary_complex: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not 0 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"rank is {rank}; it must be at least 0 and at most min(in_features, out_features) = "
                f"{min(in_features, out_features)}"
            )
        if reflections:
            check_reflections(reflections, in_features)
        elif not rank:
            raise ValueError("rank and reflections are both 0; at least one must be greater")
        if mixing not in MIXING_RULES:
            raise ValueError(f"mixing is {mixing!r}; it may be one of {', '.join(map(repr, MIXING_RULES))}")
        if not 0.0 <= mixing_value <= 1.0 or (mixing == "learned" and mixing_value in (0.0, 1.0)):
            raise ValueError(
                f"mixing_value is {mixing_value}; it must lie between 0 and 1"
                + (", strictly, for mixing 'learned'" if mixing == "learned" else "")
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
        if not rank or not reflections:
            mixing, mixing_value = "fixed", float(rank > 0)
        self.rank, self.reflections, self.alpha = rank, reflections, alpha
        self.dropout = dropout if rank else 0.0
        self.mixing_rule = mixing
        self.unitary_block_size, self.unitary_complex = unitary_block_size, unitary_complex
        factory = {"device": device, "dtype": dtype}
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, **factory))  # type: ignore[arg-type]
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, **factory))  # type: ignore[arg-type]
        self.householder_u = nn.Parameter(paired_reflections(in_features, reflections, device, dtype))
        if rank and self.lora_A.device.type != "meta":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        if unitary_block_size is not None:
            rotation = CayleyRotation(in_features, unitary_block_size, unitary_complex, device, dtype)
            self.cayley_skew = rotation.skew
        if mixing == "learned":
            logit = math.log(mixing_value / (1.0 - mixing_value))
            self.mixing_logit = nn.Parameter(torch.tensor(logit, **factory))  # type: ignore[arg-type]
        # λ and the averages behind it stay in float32 whatever the adapter's dtype: an average that moves by a tenth
        # of a percent a step would stand still in bfloat16.
        wide = torch.promote_types(dtype, torch.float32)
        self.register_buffer("mixing", torch.tensor(float(mixing_value), device=device, dtype=wide))
        self.register_buffer("gradient_norms", torch.zeros(2, device=device, dtype=wide))
        # (v, t, v t) of householder_u while a model's forward runs that made those of all its layers together. A layer
        # that is compiled by itself does not see them: it must find the same when a checkpoint runs it anew.
        self.prepared_reflections: tuple[Tensor, Tensor, Tensor] | None = None
        # `cayley_of` cayley_skew, likewise; and where the whole model is compiled, what its graph made.
        self.prepared_rotation: Tensor | None = None
        self.traced_rotation: Tensor | None = None
        self.register_buffer("lora_A_start", None)
        self.register_buffer("lora_B_start", None)

    def drop_prepared(self) -> None:
        """Forget what was prepared, which holds for one forward alone."""
        self.prepared_reflections = self.prepared_rotation = self.traced_rotation = None

    def __getstate__(self) -> dict[str, Any]:
        prepared = dict.fromkeys(("prepared_reflections", "prepared_rotation", "traced_rotation"))
        return {**self.__dict__, **prepared}  # a copy or a pickle is of its own values

    @property
    def scaling(self) -> float:
        """s = α/√r, as LoRA-GA and rsLoRA have it; 0 without a low-rank branch."""
        return self.alpha / math.sqrt(self.rank) if self.rank else 0.0

    @property
    def low_rank_size(self) -> int:
        """Leading rows of the factor down that are the low-rank branch: r, or 2r with a gradient-aligned start."""
        return self.rank * (1 if self.lora_A_start is None else 2)

    @property
    def total_rank(self) -> int:
        """R of the factor pair: r + n, or 2r + n with a gradient-aligned start."""
        return self.low_rank_size + self.reflections

    def coefficient(self) -> Tensor:
        """λ, a 0-dim tensor on the adapter's device."""
        if self.mixing_rule == "learned":
            return torch.sigmoid(self.mixing_logit.to(self.mixing.dtype))
        return self.mixing

    def allocate_start(self) -> None:
        """Make room, zeros, for the frozen start of a gradient-aligned low-rank branch."""
        self.lora_A_start = torch.zeros_like(self.lora_A, dtype=self.mixing.dtype, requires_grad=False)
        self.lora_B_start = torch.zeros_like(self.lora_B, dtype=self.mixing.dtype, requires_grad=False)

    @torch.no_grad()
    def set_start(self, lora_A: Tensor, lora_B: Tensor) -> None:
        """Start the low-rank branch at A₀ (r, in), B₀ (out, r), carried along frozen so that the layer is unchanged.

        The start is rounded to the parameters' dtype first: B A − B₀ A₀ is then zero in every dtype.
        """
        self.allocate_start()
        assert self.lora_A_start is not None and self.lora_B_start is not None
        for parameter, start, value in (
            (self.lora_A, self.lora_A_start, lora_A),
            (self.lora_B, self.lora_B_start, lora_B),
        ):
            parameter.copy_(value)
            start.copy_(parameter)

    def low_rank(self) -> tuple[Tensor, Tensor]:
        """A and B, joined with the frozen start where there is one: [A; A₀] and [B, −B₀]."""
        if self.lora_A_start is None or self.lora_B_start is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.lora_A_start]), torch.cat(
            [self.lora_B, -self.lora_B_start], dim=1
        )

    def factors(self, weight: Tensor | Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """down (R, in) and up (out, R) with W' = W + up·down; ``weight`` is W or the function z ↦ W z."""
        lora_A, lora_B = self.low_rank()
        prepared = None if torch.compiler.is_compiling() else self.prepared_reflections
        return functional.hybrid_factors(
            weight, lora_A, lora_B, self.householder_u, self.coefficient(), self.scaling, prepared
        )

    @property
    def has_rotation(self) -> bool:
        return self.unitary_block_size is not None

    def rotation(self) -> Tensor:
        """The blocks q (k, width, width) of the Cayley rotation; only where `has_rotation`."""
        assert self.unitary_block_size is not None
        transformed = self.traced_rotation if torch.compiler.is_compiling() else self.prepared_rotation
        return rotation_blocks(self.cayley_skew, self.unitary_block_size, self.unitary_complex, transformed)

    def extra_repr(self) -> str:
        rotation = f", unitary_block_size={self.unitary_block_size}" if self.has_rotation else ""
        dropout = f", dropout={self.dropout}" if self.dropout else ""
        return f"rank={self.rank}, reflections={self.reflections}, mixing={self.mixing_rule!r}{dropout}{rotation}"
