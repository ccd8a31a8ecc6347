"""`HybridConfig`: the hybrid adapter as a PEFT method."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aenum
from peft import PeftConfig
from peft.utils import PeftType

from hybrid_kernels.nn.adapter import MIXING_RULES

# PEFT keeps its methods in an enum and takes outside ones once the enum knows their name.
if "HYBRID" not in PeftType.__members__:
    aenum.extend_enum(PeftType, "HYBRID", "HYBRID")


def matches(pattern: list[str] | set[str] | str, name: str) -> bool:
    """Whether a module name is meant, by PEFT's rule: a string is a regular expression for the whole name, a list
    holds names or endings of names at a dot."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == item or name.endswith(f".{item}") for item in pattern)


@dataclass
class HybridConfig(PeftConfig):
    """Configuration of the hybrid adapter: y = (x Q) W'ᵀ + b, W' = W + λ s (B A − B₀ A₀) + (1 − λ)(W H₁…Hₙ − W).

    Args:
        r: rank of the low-rank branch, at most the smaller side of every target layer; 0 for reflections alone.
        reflections: n, Householder reflections, even; 0 for a low-rank branch alone, not both.
        lora_alpha: α of the scaling s = α/√r.
        mixing: "gradient_norm" (λ follows the branches' gradient norms: add the `GradientNormMixing` callback),
            "fixed" or "learned"; of no effect on one branch alone.
        mixing_value: λ at the start.
        lora_dropout: probability of an element of a layer's input to be dropped before the low-rank branch, in
            training only; the reflections see the input as it is.
        target_modules: list of module names or endings, a regular expression for the whole name, or "all-linear".
            None: the default for known model types.
        exclude_modules: likewise, names that are left alone.
        layers_to_transform, layers_pattern: restrict a list of target modules to some layers, as in PEFT's LoRA.
        unitary_modules: those of the target modules (list or regular expression) whose input also goes through a Cayley
            rotation; None for no rotation.
        unitary_block_size: size of its blocks; it (complex: twice it) must divide the layers' in_features.
        unitary_complex: complex unitary blocks on pairs of features instead of real orthogonal ones.
        modules_to_save: other modules that are trained and saved, such as a classification head.
        gradient_aligned: the adapter carries a gradient-aligned start A₀, B₀; set by `initialize_gradient_aligned`.

    Raises ValueError naming the field for values out of range.
    """

    r: int = field(default=16, metadata={"help": "Rank of the low-rank branch."})
    reflections: int = field(default=16, metadata={"help": "Number of Householder reflections, even."})
    lora_alpha: float = field(default=16.0, metadata={"help": "alpha of the scaling alpha / sqrt(r)."})
    mixing: str = field(default="gradient_norm", metadata={"help": "gradient_norm, fixed or learned."})
    mixing_value: float = field(default=0.5, metadata={"help": "Mixing coefficient at the start."})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout of the input of the low-rank branch, in training."}
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, endings of names, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, endings of names or a regular expression to leave alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Layer indices to adapt; target_modules must be a list then."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the module list that layers_to_transform counts in."}
    )
    unitary_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Target modules whose input also goes through a Cayley rotation."}
    )
    unitary_block_size: int = field(default=32, metadata={"help": "Block size of the Cayley rotation."})
    unitary_complex: bool = field(default=False, metadata={"help": "Complex instead of real blocks."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save, such as a classification head."}
    )
    gradient_aligned: bool = field(
        default=False, metadata={"help": "Whether the adapter carries a gradient-aligned start."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.HYBRID  # type: ignore[attr-defined]
        for name in ("target_modules", "exclude_modules", "unitary_modules"):
            value = getattr(self, name)
            if isinstance(value, list):
                setattr(self, name, set(value))
        if self.r < 0:
            raise ValueError(f"r is {self.r}; it must be at least 0")
        if self.reflections < 0 or self.reflections % 2:
            raise ValueError(f"reflections is {self.reflections}; it must be even and at least 0")
        if not self.r and not self.reflections:
            raise ValueError("r and reflections are both 0; at least one must be greater")
        if not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha is {self.lora_alpha}; it must be greater than 0")
        if self.mixing not in MIXING_RULES:
            raise ValueError(
                f"mixing is {self.mixing!r}; it may be one of {', '.join(map(repr, MIXING_RULES))}"
            )
        if not 0.0 <= self.mixing_value <= 1.0:
            raise ValueError(f"mixing_value is {self.mixing_value}; it must lie between 0 and 1")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; it must be at least 0 and below 1")
        if self.unitary_block_size < 1:
            raise ValueError(f"unitary_block_size is {self.unitary_block_size}; it must be at least 1")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform needs target_modules as a list, not a string")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern needs layers_to_transform")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Load from a local folder or the hub; ValueError for a local checkpoint whose weights are cut short."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        _check_complete(Path(pretrained_model_name_or_path, subfolder or "", "adapter_model.safetensors"))
        return config


def _check_complete(path: Path) -> None:
    """Raise ValueError if a safetensors file exists but is not whole: PEFT's own error says neither file nor cause."""
    from safetensors import SafetensorError, safe_open

    if path.is_file():
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"adapter checkpoint {path} cannot be read: {error}; it is truncated or damaged, save or copy it again"
            ) from error
