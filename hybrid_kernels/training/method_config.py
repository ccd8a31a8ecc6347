"""The methods that a run compares, as sections of its configuration, and the hybrid's ablations.

A size that is null (r, reflections, block_size) is left to the run's budget of trainable parameters:
`budget.fit_budget` chooses it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Backend = Literal["peft", "hybrid-kernels", "transformers"]
Mixing = Literal["gradient_norm", "fixed", "learned"]
#: keys that may be null
SIZES = ("r", "reflections", "block_size")


class Section(BaseModel):
    """A section of a configuration file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Method(Section):
    name: str | None = Field(None, pattern=r"^[\w.-]+$", description="of its folder; by default the method's")

    @property
    def trains(self) -> bool:
        return True


class PretrainedMethod(_Method):
    """No training: the pretrained decoder as it is, asked by prompts."""

    method: Literal["none"]
    prompt_shots: int | None = Field(
        None, ge=0, description="worked examples in its prompts (in-context learning); None: the run's"
    )

    @property
    def trains(self) -> bool:
        return False

    @property
    def label(self) -> str:
        return "Pretrained" if self.prompt_shots is None else f"Pretrained, {self.prompt_shots} in the prompt"

    @property
    def backend(self) -> Backend:
        return "transformers"


class _Trained(_Method):
    learning_rate: float | None = Field(None, gt=0, description="None: the training's")
    source_learning_rate: float | None = Field(
        None, gt=0, description="in the source stage; None: learning_rate, or else the stage's"
    )


class FullMethod(_Trained):
    """Full fine-tuning: every parameter trains."""

    method: Literal["full"]
    embeddings: bool = Field(
        True,
        description="whether the token embeddings train too, and with them an output layer tied to them; "
        "they are most of a small multilingual model",
    )

    @property
    def label(self) -> str:
        return "Full" if self.embeddings else "Full, embeddings frozen"

    @property
    def backend(self) -> Backend:
        return "transformers"


class _Adapter(_Trained):
    target_modules: str | list[str] = Field(
        "all-linear", description="names or endings, a regular expression, or all-linear"
    )


class _PeftAdapter(_Adapter):
    """A method whose layers are PEFT's own."""

    accelerate: bool = Field(False, description="run PEFT's layers on this package's kernels; same results")

    @property
    def backend(self) -> Backend:
        return "hybrid-kernels" if self.accelerate else "peft"

    @property
    def _suffix(self) -> str:
        return ", accelerated" if self.accelerate else ""


class LoraMethod(_PeftAdapter):
    """LoRA (arXiv 2106.09685): W + (α/r) B A."""

    method: Literal["lora"]
    r: int | None = Field(ge=1)
    alpha: int = Field(gt=0)

    @property
    def label(self) -> str:
        return f"LoRA r = {_size(self.r)}{self._suffix}"


class LoraGaMethod(_Adapter):
    """LoRA-GA (arXiv 2407.05000, Algorithm 1): W + (α/√r)(B A − B₀ A₀), A₀ and B₀ from the loss gradient.

    These are the hybrid's layers without reflections. PEFT 0.21.2 has an initialisation of that name, which scales B by
    the singular values and is not Algorithm 1, and which rewrites the base weights, so that the adapter it saves does
    not load on the pretrained model.
    """

    method: Literal["lora_ga"]
    r: int | None = Field(ge=1)
    alpha: float = Field(gt=0)
    gradient_batches: int = Field(4, ge=1, description="training batches behind the gradient-aligned start")

    @property
    def label(self) -> str:
        return f"LoRA-GA r = {_size(self.r)}"

    @property
    def backend(self) -> Backend:
        return "hybrid-kernels"


class HraMethod(_PeftAdapter):
    """Householder reflection adaptation (arXiv 2405.17484): W H₁…H_r."""

    method: Literal["hra"]
    r: int | None = Field(ge=2, multiple_of=2, description="even: reflections start in pairs that cancel")

    @property
    def label(self) -> str:
        return f"HRA r = {_size(self.r)}{self._suffix}"


class OftMethod(_PeftAdapter):
    """OFT (arXiv 2306.07280): W times a block-diagonal rotation, by the exact Cayley transform."""

    method: Literal["oft"]
    block_size: int | None = Field(ge=2, description="must divide the in_features of every target layer")

    @property
    def label(self) -> str:
        return f"OFT b = {_size(self.block_size)}{self._suffix}"


class BoftMethod(_PeftAdapter):
    """BOFT (arXiv 2311.06243): a product of butterfly rotations, and a scale of the outputs."""

    method: Literal["boft"]
    block_size: int | None = Field(
        ge=2, multiple_of=2, description="block_size · 2^(factors − 1) must divide every in_features"
    )
    factors: int = Field(2, ge=1, description="butterfly factors m; with 1 it is OFT and a scale")

    @property
    def label(self) -> str:
        return f"BOFT m = {self.factors}, b = {_size(self.block_size)}{self._suffix}"


class UrnnMethod(_Adapter):
    """The structured unitary transform of uRNNs (arXiv 1511.06464) of the layers' inputs.

    It has 3.5 parameters per input feature and no size to choose: no budget changes it.
    """

    method: Literal["urnn"]

    @property
    def label(self) -> str:
        return "uRNN"

    @property
    def backend(self) -> Backend:
        return "hybrid-kernels"


class HybridMethod(_Adapter):
    """The hybrid adapter: W + λ s (B A − B₀ A₀) + (1 − λ)(W H₁…Hₙ − W), and a rotation in chosen sub-layers."""

    method: Literal["hybrid"]
    r: int | None = Field(ge=0, description="of the low-rank branch; 0 for none")
    reflections: int | None = Field(
        ge=0, multiple_of=2, description="even: they start in pairs that cancel; 0 for none"
    )
    alpha: float = Field(gt=0)
    mixing: Mixing = "gradient_norm"
    mixing_value: float = Field(0.5, ge=0, le=1)
    unitary_modules: str | list[str] | None = None
    unitary_block_size: int = Field(32, ge=2)
    gradient_aligned: bool = True
    gradient_batches: int = Field(4, ge=1, description="training batches behind the gradient-aligned start")
    orthogonality_weight: float = Field(0.0, ge=0, description="μ of the loss's μ ‖I − ÛᵀÛ‖_F")

    @model_validator(mode="after")
    def _consistent(self) -> HybridMethod:
        if self.r == 0 and self.reflections == 0:
            raise ValueError("r and reflections are both 0; at least one must be greater")
        if self.mixing == "learned" and self.mixing_value in (0.0, 1.0):
            raise ValueError(
                f"mixing_value is {self.mixing_value}; it must lie between 0 and 1, strictly, to be learned"
            )
        return self

    @property
    def label(self) -> str:
        if self.r == 0:
            sizes = f"{_size(self.reflections)} reflections, no low rank"
        elif self.reflections == 0:
            sizes = f"r = {_size(self.r)}, no reflections"
        else:
            sizes = f"r = {_size(self.r)} + {_size(self.reflections)} reflections"
        notes = {
            " + unitary": self.unitary_modules is not None,
            f", {self.mixing} mixing": self.mixing != "gradient_norm" and self.r != 0 != self.reflections,
            ", not aligned": not self.gradient_aligned and self.r != 0,
            ", no regulariser": not self.orthogonality_weight and self.reflections != 0,
        }
        return f"Hybrid {sizes}" + "".join(note for note, holds in notes.items() if holds)

    @property
    def backend(self) -> Backend:
        return "hybrid-kernels"


AnyMethod = (
    PretrainedMethod
    | FullMethod
    | LoraMethod
    | LoraGaMethod
    | HraMethod
    | OftMethod
    | BoftMethod
    | UrnnMethod
    | HybridMethod
)
Method = Annotated[AnyMethod, Field(discriminator="method")]
TAGS: tuple[str, ...] = tuple(
    get_args(kind.model_fields["method"].annotation)[0] for kind in get_args(AnyMethod)
)
"""What ``method`` may be."""


def hybrid_ablations(method: HybridMethod) -> list[HybridMethod]:
    """The hybrid with one part left out or replaced at a time, each with a name and a label of its own.

    Without gradient alignment; with fixed and with learned mixing; without reflections, low rank, regulariser, and
    rotations of sub-layers. What ``method`` lacks anyway is left out of the list. Sizes stay as they are, so that an
    ablation of a branch has fewer parameters until it is fitted to the budget again (`budget.fit_budget`, which leaves
    a branch of size 0 away).
    """
    changes: dict[str, dict[str, Any]] = {
        "no-alignment": {"gradient_aligned": False},
        "fixed-mixing": {"mixing": "fixed"},
        "learned-mixing": {"mixing": "learned"},
        "no-reflections": {"reflections": 0, "orthogonality_weight": 0.0},
        "no-low-rank": {"r": 0, "gradient_aligned": False},
        "no-regulariser": {"orthogonality_weight": 0.0},
        "no-unitary": {"unitary_modules": None},
    }
    base, name = method.model_dump(), method.name or method.method
    return [
        HybridMethod.model_validate({**base, **change, "name": f"{name}-{kind}"})
        for kind, change in changes.items()
        if any(base[key] != value for key, value in change.items())
    ]


def distinct_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels of methods by name; those that several share, which differ by a learning rate, say, with the name too."""
    count = Counter(labels.values())
    return {name: label if count[label] == 1 else f"{label} ({name})" for name, label in labels.items()}


def _size(value: int | None) -> str:
    return "?" if value is None else str(value)
