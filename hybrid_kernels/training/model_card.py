"""The model card of a trained adapter: what it is, from what, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hybrid_kernels.training.method_config import AnyMethod

PIPELINES = {"classification": "text-classification", "causal_lm": "text-generation"}


def model_card(
    *,
    base_model: str,
    method: AnyMethod,
    task: str,
    languages: Sequence[str],
    data: str,
    governance: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    licence: str | None = None,
    trainable_parameters: int | None = None,
) -> ModelCard:
    """A card for `methods.save`.

    Args:
        base_model: hub name or folder of the pretrained model.
        task: "classification" or "causal_lm".
        languages: codes of the training data's languages.
        data: what it was trained on, in words or as a hub name.
        governance: the summary of `hybrid_kernels.governance.govern`; None for rows used as they are.
        metrics: values by name, on data that was not trained on.
        licence: of the trained weights, as the hub has it ("apache-2.0"); "unknown" if None.
    """
    if task not in PIPELINES:
        raise ValueError(f"task is {task!r}; it may be one of {', '.join(map(repr, PIPELINES))}")
    header = ModelCardData(
        base_model=base_model,
        language=sorted(languages),
        license=licence or "unknown",
        library_name="transformers" if method.backend == "transformers" else "peft",
        pipeline_tag=PIPELINES[task],
        tags=["hybrid-kernels", method.method],
    )
    facts = {
        "Base model": base_model,
        "Method": method.label,
        "Trainable parameters": None if trainable_parameters is None else f"{trainable_parameters:,}",
        "Languages": ", ".join(sorted(languages)),
        "Training data": data,
        "Licence": licence or "unknown",
    }
    settings = method.model_dump(exclude={"name", "method"}, exclude_none=True)
    parts = [
        f"# {method.label} on {base_model}",
        _table(("", ""), [(name, value) for name, value in facts.items() if value is not None]),
        "## Settings",
        _table(("setting", "value"), settings.items()),
        "## Governance of the training data",
        _governance(governance),
    ]
    if metrics:
        parts += ["## Metrics", _table(("metric", "value"), [(k, f"{v:.4g}") for k, v in metrics.items()])]
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _governance(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "None: all rows were used as they are."
    kept = f"{summary['kept']:,} of {summary['rows']:,} rows were kept."
    rejected = [(step, f"{found['rejected']:,}") for step, found in summary["by_step"].items()]
    return f"{kept}\n\n{_table(('step', 'rejected'), rejected)}" if rejected else kept


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [f"| {left} | {right} |" for left, right in (head, ("---", "---"))]
    return "\n".join([*lines, *(f"| {_cell(left)} | {_cell(right)} |" for left, right in rows)])


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return " ".join(text.replace("|", "\\|").split())
