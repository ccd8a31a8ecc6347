"""The configuration of a run: one YAML file, checked before any work."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.config_errors import describe_errors
from hybrid_kernels.training.method_config import SIZES, AnyMethod, Method, PretrainedMethod
from hybrid_kernels.training.method_config import Section as _Section

DEMO_CONFIG = Path(__file__).parent / "demo.yaml"
EXAMPLES = Path(__file__).parents[2] / "examples"
#: of natural language inference; parallel text has splits of any name
SPLITS = ("train", "dev", "test")
#: training rows a language; 0: the source stage alone
Shots = Annotated[int, Field(ge=0)] | Literal["all"]


class ModelConfig(_Section):
    name: str = Field(description='"demo", a hub name, or a Transformers folder')
    max_length: int = Field(
        128,
        ge=8,
        description="tokens of a training example; premises are cut, translations that are longer left out",
    )


class DataConfig(_Section):
    source: str = Field(
        description='"sample", a folder, or a hub name; see training.data.load_nli, evaluation.parallel.load_parallel'
    )
    evaluation_source: str | None = Field(
        None, description="where evaluation and dev rows come from; None: the source"
    )
    languages: list[str] | None = Field(None, min_length=1, description="None: all that are there")
    train_split: str = "train"
    evaluation_split: str = "test"
    evaluation_fraction: float = Field(
        0.5, gt=0, lt=1, description="part held out where both splits are the same one of the same source"
    )
    dev_split: str | None = Field(
        None, description="where rows to choose and calibrate on come from; None: the evaluation rows"
    )
    dev_fraction: float = Field(
        0.0, ge=0, lt=1, description="part of the evaluation rows that is the dev part; 0: no dev part"
    )
    rows_per_language: int | None = Field(None, ge=1, description="read only so many first rows a language")
    shots: Shots | list[Shots] | None = Field(
        None,
        description='training rows a language (translation: a direction), after governance; None is "all"; '
        "a list is a sweep",
    )
    seed: int = Field(0, description="of the divisions; the choice of shots follows the run's seeds too")

    @field_validator("shots", mode="before")
    @classmethod
    def _shots(cls, value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        if value is not None and (not values or not all(is_shots(one) for one in values)):
            raise ValueError('must be an integer of at least 0, "all", or a list of such')
        if len(set(values)) < len(values):
            raise ValueError("names a number of shots twice")
        return value

    @model_validator(mode="after")
    def _dev_part(self) -> DataConfig:
        if self.dev_split is not None and self.dev_split == self.train_split and self._one_source:
            raise ValueError(f"dev_split is {self.dev_split!r}, which the training rows come from")
        if self.dev_split == self.evaluation_split and not self.dev_fraction:
            raise ValueError("dev_split is the evaluation split: give dev_fraction the part that is for dev")
        if self.dev_split not in (None, self.evaluation_split) and self.dev_fraction:
            raise ValueError(f"give one of dev_fraction and a dev_split of its own ({self.dev_split!r})")
        return self

    @property
    def _one_source(self) -> bool:
        return self.evaluation_source in (None, self.source)

    @property
    def divides_one_split(self) -> bool:
        """Whether the evaluation rows are a part of the training split, held out."""
        return self._one_source and self.train_split == self.evaluation_split

    @property
    def all_shots(self) -> list[int | Literal["all"]]:
        """The sweep's numbers of shots, ascending, "all" last."""
        values = self.shots if isinstance(self.shots, list) else ["all" if self.shots is None else self.shots]
        return sorted(values, key=lambda shots: float("inf") if shots == "all" else shots)


def is_shots(value: Any) -> bool:
    return value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


class RobustnessConfig(_Section):
    """The evaluation rows once more with their spelling changed; `evaluation.robustness` has the recipes."""

    recipes: Literal["all"] | list[str] = "all"
    rate: float | None = Field(
        None, gt=0, le=1, description="share of the places that a recipe changes; None: its own"
    )
    max_rows_per_language: int | None = Field(None, ge=1)
    shots: Shots | None = Field(None, description="only in cells of so many shots; None: in all")
    seed: int = 0


class EvaluationConfig(_Section):
    languages: list[str] | None = Field(None, min_length=1, description="None: those of the data")
    max_rows_per_language: int | None = Field(
        None, ge=1, description="the same items in each language (translation: direction)"
    )
    reference_language: str = "en"
    batch_size: int = Field(32, ge=1)
    robustness: RobustnessConfig | None = None


class _Schedule(_Section):
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Any:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class SourceStage(_Schedule):
    """Training on the source language before the shots; every few-shot cell starts from its adapter."""

    source: str | None = Field(None, description="None: the data's")
    split: str = "train"
    languages: list[str] | None = Field(None, min_length=1, description="None: the reference language")
    rows_per_language: int | None = Field(None, ge=1, description="balanced over labels; None: all")
    learning_rate: float | None = Field(
        None, gt=0, description="of every method that names none of its own; None: the training's"
    )


class TrainingConfig(_Schedule):
    batch_size: int = Field(16, ge=1, description="over all processes")
    length_bucketed: bool = Field(
        False, description="batches of rows of like length: less padding, sooner done"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the products in training (autocast); weights, and predictions, are float32"
    )
    learning_rate: float = Field(gt=0, description="of every method that names none of its own")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    checkpoint_steps: int = Field(50, ge=1, description="an interrupted run repeats at most so many steps")
    seeds: list[int] = Field([0], min_length=1)
    tensorboard: bool = Field(False, description="event files in each cell's folder")

    @model_validator(mode="after")
    def _distinct_seeds(self) -> TrainingConfig:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are repeated: {self.seeds}")
        return self


class GovernanceAblation(_Section):
    """No step, each step of the policy alone, all but one, and all of them, for some of the methods."""

    methods: list[str] = Field(min_length=1, description="by name")
    shots: Shots = "all"


class PromptConfig(_Section):
    """How a prompt's verbalisers become class probabilities; see `evaluation.prompting`."""

    prompts: Literal["own", "en"] = Field("own", description="each row's in its own language, or in English")
    length_normalized: bool = Field(True, description="mean instead of sum over a verbaliser's tokens")
    calibrated: bool = Field(False, description="contextual calibration (arXiv 2102.09690)")


class DecodingConfig(_Section):
    """See `evaluation.generation.Decoding`."""

    beams: int = Field(1, ge=1, description="1 is greedy")
    length_penalty: float = 1.0
    limit_ratio: float = Field(3.0, ge=0, description="tokens of an answer at most, for each of the source")
    limit_extra: int = Field(16, ge=1, description="and so many more")


class TranslationConfig(_Section):
    directions: Literal["english", "all"] | list[str] = Field(
        "english",
        description="from and into English, every two languages both ways, or a list such as [de-en]",
    )
    prompt_shots: int = Field(
        0, ge=0, description="worked examples that a prompt shows when predicting, of the training rows"
    )
    decoding: DecodingConfig = Field(default_factory=lambda: DecodingConfig.model_validate({}))


class RunConfig(_Section):
    """A whole run. `RunConfig.load(path)` reads it from YAML."""

    title: str
    output: str = Field(description="the run's folder")
    task: Literal["classification", "prompt", "translation"] = "classification"
    model: ModelConfig
    data: DataConfig
    governance: GovernancePolicy | None = Field(description="None: all rows are used as they are")
    governance_ablation: GovernanceAblation | None = None
    source_stage: SourceStage | None = None
    training: TrainingConfig
    methods: list[Method] = Field(min_length=1)
    budget: int | None = Field(
        None, ge=1, description="trainable parameters of each adapter, without the head"
    )
    evaluation: EvaluationConfig
    prompt: PromptConfig | None = Field(None, description="of the task prompt, and of no other")
    translation: TranslationConfig | None = Field(
        None, description="of the task translation, and of no other"
    )

    @model_validator(mode="after")
    def _fits_the_task(self) -> RunConfig:
        for name in ("prompt", "translation"):
            if (self.task == name) != (getattr(self, name) is not None):
                raise ValueError(
                    f"task is {self.task!r}; "
                    + (f"give its section `{name}`" if self.task == name else f"it has no section `{name}`")
                )
        if self.task == "translation":
            self._check_translation()
        else:
            self._check_inference()
        return self

    def _check_translation(self) -> None:
        if self.data.languages is None:
            raise ValueError("data.languages is null; translation needs the languages of its directions")
        if self.evaluation.languages is not None:
            raise ValueError("evaluation.languages is for classification; give translation.directions")
        if self.evaluation.reference_language != "en":
            raise ValueError(
                f"evaluation.reference_language is {self.evaluation.reference_language!r}; the balance of "
                "translation is with 'en'"
            )
        if self.source_stage is not None:
            raise ValueError(
                "source_stage is for classification and prompt; translation has no source language"
            )
        # No table of a translation run shows these; they would be trained or predicted for nothing.
        for name, value in (
            ("governance_ablation", self.governance_ablation),
            ("evaluation.robustness", self.evaluation.robustness),
        ):
            if value is not None:
                raise ValueError(f"{name} is for classification and prompt; translation takes null")
        if len(self.data.all_shots) > 1:
            raise ValueError(f"data.shots is {self.data.shots!r}; translation takes one number, or 'all'")
        _ = self.directions

    def _check_inference(self) -> None:
        stage = self.source_stage
        for name, split in (
            ("data.train_split", self.data.train_split),
            ("data.evaluation_split", self.data.evaluation_split),
            ("data.dev_split", self.data.dev_split),
            ("source_stage.split", None if stage is None else stage.split),
        ):
            if split is not None and split not in SPLITS:
                raise ValueError(f"{name} is {split!r}; it may be one of {', '.join(map(repr, SPLITS))}")

    @cached_property
    def directions(self) -> list[tuple[str, str]]:
        """(source, target) of a translation run."""
        from hybrid_kernels.evaluation.parallel import directions

        if self.translation is None or self.data.languages is None:
            raise ValueError(f"task is {self.task!r}; only translation has directions")
        try:
            return directions(self.data.languages, self.translation.directions)
        except ValueError as error:
            raise ValueError(f"translation.directions and data.languages: {error}") from None

    def prompt_shots(self, method: AnyMethod) -> int:
        """Worked examples that the prompts of a method show when predicting."""
        own = method.prompt_shots if isinstance(method, PretrainedMethod) else None
        if own is None:
            return 0 if self.translation is None else self.translation.prompt_shots
        return own

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        names = list(self.named_methods)
        if len(names) != len(self.methods):
            raise ValueError("two methods have the same name; give each a `name` of its own")
        for name, method in self.named_methods.items():
            sizes = [one for one in SIZES if getattr(method, one, 0) is None]
            if sizes and self.budget is None:
                raise ValueError(
                    f"method {name!r} leaves {', '.join(sizes)} to a budget; give it, or the run's budget"
                )
        for name, method in self.named_methods.items():
            rate = getattr(method, "source_learning_rate", None)
            if rate is not None and self.source_stage is None:
                raise ValueError(
                    f"method {name!r}: source_learning_rate is {rate}, but there is no source_stage; leave it out"
                )
            if isinstance(method, PretrainedMethod):
                if self.task == "classification":
                    raise ValueError(
                        f"method {name!r} does not train; task classification has a head to train"
                    )
                if method.prompt_shots is not None and self.task != "translation":
                    raise ValueError(f"method {name!r}: prompt_shots is for task translation")
        ablation, robustness = self.governance_ablation, self.evaluation.robustness
        if ablation is not None:
            if self.governance is None:
                raise ValueError("governance_ablation needs a governance policy to switch the steps of")
            if unknown := sorted(set(ablation.methods) - set(names)):
                raise ValueError(
                    f"governance_ablation.methods has {', '.join(unknown)}; the methods are {', '.join(names)}"
                )
            if idle := [name for name in ablation.methods if not self.named_methods[name].trains]:
                raise ValueError(f"governance_ablation.methods has {idle[0]}, which does not train")
        shots = [*self.data.all_shots, *([ablation.shots] if ablation is not None else [])]
        if 0 in shots and self.source_stage is None:
            raise ValueError(
                "0 shots need a source_stage: nothing else trains the classification head"
                if self.task == "classification"
                else "0 shots need a source_stage; the pretrained model itself is the method `none`"
                if self.task == "prompt"
                else "0 shots are no training; the pretrained model itself is the method `none`"
            )
        if robustness is not None and robustness.shots not in (None, *self.data.all_shots):
            raise ValueError(
                f"evaluation.robustness.shots is {robustness.shots!r}; data.shots has {self.data.all_shots}"
            )
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

        `data` is where all rows are then read from: sources that the file names for evaluation or the source stage
        give way to it, too.

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
        if values and set(values) <= set(GovernancePolicy.model_fields):
            raise ValueError(
                f"{path} is a policy of `hybrid-kernels govern --policy`, not the configuration of a run"
            )
        for section, key, value in (
            ("model", "name", model),
            ("data", "source", data),
            (None, "output", output),
            ("training", "seeds", None if seed is None else [seed]),
        ):
            target = values if section is None else values.get(section)
            if value is not None and isinstance(target, dict):
                target[key] = value
        if data is not None:
            for section, key in (("data", "evaluation_source"), ("source_stage", "source")):
                if isinstance(values.get(section), dict):
                    values[section].pop(key, None)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{path}: {describe_errors(error, cls)}") from None


def example_configs() -> dict[str, Path]:
    """The configurations of runs beside the source tree, by name; none where only the package is installed."""
    return {
        path.stem: path for path in sorted(EXAMPLES.glob("*.yaml")) if "\nmethods:" in path.read_text("utf-8")
    }
