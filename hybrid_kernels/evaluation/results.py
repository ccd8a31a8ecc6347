"""The structure of `results.json`: what a run writes and what the report reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

Count = Annotated[int, Field(ge=0)]


class Machine(BaseModel):
    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None
    platform: str


class Made(BaseModel):
    """On what something was made."""

    commit: str | None
    machine: Machine
    versions: dict[str, str | None]


class CellResult(BaseModel):
    """What `training.plan.run_cell` returned."""

    method: str
    seed: int
    shots: Annotated[int, Field(ge=0)] | Literal["all"]
    governance: str
    label: str
    #: whose layers ran
    backend: str
    #: relative to the run's
    folder: str
    train_rows: Count
    #: null where nothing was trained: the pretrained model as it is
    train_loss: float | None
    trainable_parameters: Count
    adapter_bytes: Count
    #: by part; the test part's has `per_language` (classification) or `directions` (translation)
    metrics: dict[str, dict[str, Any]]
    #: null in results from before it was recorded
    made: Made | None = None


class Footprint(BaseModel):
    """One implementation of a method; see `training.footprint.measure`."""

    implementation: str
    step_time_ratio: float
    step_time_spread: tuple[float, float]
    step_seconds: Annotated[float, Field(gt=0)]
    tokens_per_second: float
    peak_memory_bytes: Count
    trainable_parameters: Count
    joules_per_step: float | None


class MethodResult(BaseModel):
    name: str
    footprint: list[Footprint] | None


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
    #: ids of test rows that their writers romanised
    romanised: list[str] = []


class Variant(BaseModel):
    """A governance variant: how many training rows it kept."""

    kept: Count


class Results(Made):
    """What it was `Made` on is of the footprint, and of these results; each cell has its own."""

    title: str
    created: str
    config: dict[str, Any]
    model: Model
    data: Data
    governance: Governance | None
    governance_variants: dict[str, Variant]
    methods: list[MethodResult]
    step_time_note: str
    cells: Annotated[list[CellResult], Field(min_length=1)]
    #: why there is no result, by the cell's name
    missing: dict[str, str]

    @property
    def cells_made(self) -> list[Made]:
        """On what the cells were made, each once."""
        whole = Made(commit=self.commit, machine=self.machine, versions=self.versions)
        found: list[Made] = []
        for cell in self.cells:
            if (made := cell.made or whole) not in found:
                found.append(made)
        return found

    @property
    def reference_language(self) -> str:
        return str(self.config.get("evaluation", {}).get("reference_language", "en"))


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
