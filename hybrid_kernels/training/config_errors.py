"""Errors of a configuration file, for its reader."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hybrid_kernels.training.method_config import TAGS


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
