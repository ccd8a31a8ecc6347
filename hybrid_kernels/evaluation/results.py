"""The structure of `results.json`: what a run writes and what the report reads."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

Count = Annotated[int, Field(ge=0)]


class Scores(BaseModel):
    accuracy: Annotated[float, Field(ge=0, le=1)]
    macro_f1: float
    nll: float
    brier: float
    ece: float


class LanguageScores(Scores):
    n: Annotated[int, Field(ge=1)]


class Parity(BaseModel):
    reference: str
    reference_accuracy: float
    worst_language: str
    worst_accuracy: float
    gap: float
    std: float


class ReliabilityBin(BaseModel):
    lower: float
    upper: float
    #: null where count = 0
    confidence: float | None
    accuracy: float | None
    count: Count

    @model_validator(mode="after")
    def _filled_bins_have_values(self) -> ReliabilityBin:
        if self.count and (self.confidence is None or self.accuracy is None):
            raise ValueError("confidence and accuracy must be numbers where count > 0")
        return self

    @property
    def gap(self) -> float:
        """|accuracy − confidence|; 0 in an empty bin."""
        return abs((self.accuracy or 0.0) - (self.confidence or 0.0)) if self.count else 0.0


class Evaluation(BaseModel):
    macro: Scores
    per_language: Annotated[dict[str, LanguageScores], Field(min_length=1)]
    parity: Parity
    #: all languages' rows together
    reliability: list[ReliabilityBin]

    @property
    def pooled_ece(self) -> float | None:
        """Expected calibration error of all languages' rows together; None without reliability bins."""
        total = sum(b.count for b in self.reliability)
        return sum(b.count * b.gap for b in self.reliability) / total if total else None

    @model_validator(mode="after")
    def _parity_languages_are_scored(self) -> Evaluation:
        for language in (self.parity.reference, self.parity.worst_language):
            if language not in self.per_language:
                raise ValueError(f"parity names {language!r}, which per_language lacks")
        return self


class LogEntry(BaseModel):
    step: Count
    loss: float
    grad_norm: float | None = None


class Mixing(BaseModel):
    step: Count
    values: dict[str, float]


class Method(BaseModel):
    name: str
    label: str
    backend: str
    seeds: Annotated[list[int], Field(min_length=1)]
    trainable_parameters: Count
    #: null where nothing was trained
    train_loss: float | None
    evaluation: Evaluation
    #: standard deviation over seeds of "accuracy", "ece" and the parity "gap"; null where there is one seed
    spread: dict[str, float | None] | None
    #: median step time ÷ the frozen model's, and its quartiles
    step_time_ratio: float | None
    step_time_spread: tuple[float, float] | None
    peak_memory_bytes: Count | None
    adapter_bytes: Count | None
    history: list[LogEntry]
    mixing_history: list[Mixing]


class StepRejections(BaseModel):
    rejected: Count
    reasons: dict[str, Count]


class LanguageRows(BaseModel):
    rows: Count
    kept: Count
    rejected: Count


class Rejection(BaseModel):
    text: str
    language: str | None
    reason: str
    detail: Any = None


class Governance(BaseModel):
    rows: Count
    kept: Count
    rejected: Count
    by_step: dict[str, StepRejections]
    by_language: dict[str, LanguageRows]
    examples: dict[str, list[Rejection]]


class Machine(BaseModel):
    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None
    platform: str


class Model(BaseModel):
    name: str
    parameters: Annotated[int, Field(ge=1)]


class Data(BaseModel):
    source: str
    languages: list[str]
    #: three-way natural language inference unless the run says otherwise
    classes: Annotated[int, Field(ge=2)] = 3
    train_rows_raw: Count
    train_rows: Count
    evaluation_rows: Count
    malformed_rows: Count


class Results(BaseModel):
    title: str
    created: str
    commit: str | None
    machine: Machine
    versions: dict[str, str | None]
    config: dict[str, Any]
    model: Model
    data: Data
    governance: Governance | None
    methods: Annotated[list[Method], Field(min_length=1)]
    step_time_note: str

    @model_validator(mode="after")
    def _names_are_unique(self) -> Results:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"methods must have distinct names, got {names}")
        return self


def parse_results(results: Any) -> Results:
    """Check the content of a results.json; ValueError names each missing or malformed key."""
    try:
        return Results.model_validate(results)
    except ValidationError as error:
        raise ValueError("results: " + "; ".join(_problem(dict(e)) for e in error.errors())) from None


def _problem(error: dict[str, Any]) -> str:
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if error["type"] == "missing":
        return f"key {path!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return message
    return f"key {path!r}: {message}, got {repr(error['input'])[:80]}"
