"""The configuration of a run: one YAML file, checked before any work."""

from __future__ import annotations

import difflib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.method_config import TAGS, AnyMethod, Method
from hybrid_kernels.training.method_config import Section as _Section

DEMO_CONFIG = Path(__file__).parent / "demo.yaml"


class ModelConfig(_Section):
    name: str = Field(description='"demo", a hub name, or a Transformers folder')
    max_length: int = Field(128, ge=8, description="tokens of a premise–hypothesis pair; longer ones are cut")


class DataConfig(_Section):
    source: str = Field(description='"sample", a folder, or a hub name; see training.data.load_nli')
    languages: list[str] | None = Field(None, min_length=1, description="None: all that are there")
    train_split: Literal["train", "dev", "test"] = "train"
    evaluation_split: Literal["train", "dev", "test"] = "test"
    evaluation_fraction: float = Field(
        0.5, gt=0, lt=1, description="part held out where both splits are the same one"
    )
    rows_per_language: int | None = Field(None, ge=1, description="read only so many first rows a language")
    shots: int | None = Field(None, ge=1, description="training rows a language, after governance; None: all")
    seed: int = 0


class EvaluationConfig(_Section):
    languages: list[str] | None = Field(None, min_length=1, description="None: those of the data")
    max_rows_per_language: int | None = Field(None, ge=1)
    reference_language: str = "en"
    batch_size: int = Field(32, ge=1)


class TrainingConfig(_Section):
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(gt=0, description="of every method that names none of its own")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    checkpoint_steps: int = Field(50, ge=1, description="an interrupted run repeats at most so many steps")
    seeds: list[int] = Field([0], min_length=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are repeated: {self.seeds}")
        return self


class RunConfig(_Section):
    """A whole run. `RunConfig.load(path)` reads it from YAML."""

    title: str
    output: str = Field(description="the run's folder")
    model: ModelConfig
    data: DataConfig
    governance: GovernancePolicy | None = Field(description="None: all rows are used as they are")
    training: TrainingConfig
    methods: list[Method] = Field(min_length=1)
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = list(self.named_methods)
        if len(names) != len(self.methods):
            raise ValueError("two methods have the same name; give each a `name` of its own")
        return self

    @cached_property
    def named_methods(self) -> dict[str, AnyMethod]:
        return {method.name or method.method: method for method in self.methods}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        data: str | None = None,
        output: str | None = None,
        seed: int | None = None,
    ) -> RunConfig:
        """Reads a YAML file; `model`, `data`, `output` and `seed` replace what it says.

        Raises FileNotFoundError, or ValueError with the path of each key at fault, its value and what is allowed.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no configuration file {str(path)!r}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a YAML file: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds {type(values).__name__}, not the keys of a run configuration")
        for section, key, value in (
            ("model", "name", model),
            ("data", "source", data),
            (None, "output", output),
            ("training", "seeds", None if seed is None else [seed]),
        ):
            target = values if section is None else values.get(section)
            if value is not None and isinstance(target, dict):
                target[key] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{path}: {describe_errors(error, cls)}") from None


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """Pydantic's errors as one line each: key path, what is wrong, the value, the nearest known key."""
    lines = []
    for item in error.errors():
        # A discriminated union puts the chosen tag into the location; it is no key of the file.
        parts = [part for part in item["loc"] if part not in TAGS]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, item["loc"][:-1])
            close = difflib.get_close_matches(str(parts[-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            lines.append(f"{path}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{path}: required, but missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            value = "" if isinstance(item["input"], dict) else f" (it is {item['input']!r})"
            lines.append(f"{path or 'configuration'}: {message}{value}")
    return (
        lines[0]
        if len(lines) == 1
        else "\n".join([f"{len(lines)} problems", *(f"  {line}" for line in lines)])
    )


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at a location of a nested model."""
    found: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, int):
            continue
        narrowed = [
            m
            for m in found
            if "method" in m.model_fields and part in get_args(m.model_fields["method"].annotation)
        ]
        children = [child for m in found if part in m.model_fields for child in _models(m.model_fields[part])]
        found = narrowed or children
    return sorted({name for m in found for name in m.model_fields})


def _models(field: Any) -> list[type[BaseModel]]:
    """The pydantic models in a field's annotation."""
    pending, models = [getattr(field, "annotation", field)], []
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            models.append(annotation)
        pending.extend(get_args(annotation))
    return models
