"""A policy as a YAML file: read with errors that help, written with what each key means."""

from __future__ import annotations

import difflib
import reprlib
import textwrap
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hybrid_kernels.governance.policy import GovernancePolicy

_WIDTH = 100


class Key(NamedTuple):
    """A key of a policy.

    Attributes:
        path: `duplicates.threshold`.
        default: JSON-able.
        allowed: "a number above 0, at most 1".
        description: of the field, or the docstring of a section; may be empty.
    """

    path: str
    default: Any
    allowed: str
    description: str


def load_policy(path: str | Path) -> GovernancePolicy:
    """The policy in a YAML file; what it leaves out has its default, and an empty file is the default policy.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, names a key twice, or keys or values are not a policy's; every problem is listed with
            its key's path, the value, and what it may be.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    values = value_of(text, str(path))
    return policy_of({} if values is None else values, str(path))


def value_of(text: str, source: str) -> Any:
    """What a YAML text says. ValueError, which begins with `source`: it is none, or names a key twice."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {_yaml_problem(error)}") from None


def policy_of(values: Any, source: str) -> GovernancePolicy:
    """The policy of nested dictionaries; None for a section is its default.

    Args:
        source: what errors begin with, the name of a file say.

    Raises:
        ValueError: as `load_policy`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{source} holds {type(values).__name__} {reprlib.repr(values)}; it may be a mapping with the keys "
            + ", ".join(GovernancePolicy.model_fields)
        )
    sections = {name for name, field in GovernancePolicy.model_fields.items() if _section(field)}
    given = {name: value for name, value in values.items() if not (value is None and name in sections)}
    try:
        return GovernancePolicy.model_validate(given)
    except ValidationError as error:
        problems = [_problem(dict(item)) for item in error.errors()]
    if len(problems) == 1:
        raise ValueError(f"{source}: {problems[0]}")
    raise ValueError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))


def default_yaml() -> str:
    """The default policy, as `dump_policy` writes it."""
    return dump_policy(GovernancePolicy())


def dump_policy(policy: GovernancePolicy) -> str:
    """YAML that loads as the policy, with every key under a comment that says what it means and may be."""
    about = {key.path: key for key in describe()}
    head = "A policy of hybrid-kernels govern. What is left out has its default; unknown keys are an error."
    lines = _comment(head)
    for name, value in policy.model_dump(mode="json").items():
        lines.append("")
        if isinstance(value, dict):
            lines += [*_comment(about[name].description), f"{name}:"]
            for field, inner in value.items():
                lines += _entry(field, inner, about[f"{name}.{field}"], "  ")
        else:
            lines += _entry(name, value, about[name], "")
    return "\n".join(lines) + "\n"


def describe() -> list[Key]:
    """All keys of a policy in their order, each section before its own."""
    defaults = GovernancePolicy().model_dump(mode="json")
    keys = []
    for name, field in GovernancePolicy.model_fields.items():
        section = _section(field)
        about = " ".join((section.__doc__ or "").split()) if section else field.description or ""
        keys.append(Key(name, defaults[name], _allowed(field), about))
        for inner, inner_field in section.model_fields.items() if section else ():
            default, description = defaults[name][inner], inner_field.description or ""
            if inner == "enabled":
                description = "whether this step runs"
            keys.append(Key(f"{name}.{inner}", default, _allowed(inner_field), description))
    return keys


def _entry(name: str, value: Any, key: Key, indent: str) -> list[str]:
    written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    about = f"{key.description}: {key.allowed}"
    # The end-of-document mark that follows a bare scalar is no part of the value.
    return [*_comment(about, indent), f"{indent}{name}: {written.removesuffix('...' + chr(10)).rstrip()}"]


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _allowed(field: FieldInfo) -> str:
    """What a field may be, in words."""
    if section := _section(field):
        return f"a mapping with the keys {', '.join(section.model_fields)}"
    return _kind(field.annotation) + _limits(field.metadata)


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _either([str(part) for part in parts])
    if origin in (Union, types.UnionType):
        return _either([_kind(part) for part in parts])
    if origin in (tuple, list):
        return f"a list of {_kind(parts[0])}"
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "null",
    }
    return names.get(annotation, str(annotation))


def _limits(metadata: Iterable[Any]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = {name: getattr(item, name) for item in metadata for name in words if hasattr(item, name)}
    if set(limits) == {"ge", "le"}:
        return f" from {limits['ge']} to {limits['le']}"
    text = ", ".join(f"{words[name]} {limit}" for name, limit in limits.items())
    return f", {text}" if text else ""


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _problem(item: Mapping[str, Any]) -> str:
    """An error of pydantic for a reader: the key's path, the value, what it may be."""
    # An item of a list has its number last.
    names = [part for part in item["loc"] if isinstance(part, str)]
    path = ".".join(names)
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_nearest(names)}"
    known = {key.path: key for key in describe()}
    allowed = known[path].allowed if path in known else item["msg"]
    return f"{path}: it is {reprlib.repr(item['input'])}, and may be {allowed}"


def _nearest(names: list[str]) -> str:
    """The key that was meant by an unknown one: of its section, else of another."""
    paths = [key.path for key in describe()]
    prefix = ".".join([*names[:-1], ""]) if len(names) > 1 else ""
    siblings = [
        path[len(prefix) :] for path in paths if path.startswith(prefix) and "." not in path[len(prefix) :]
    ]
    if close := difflib.get_close_matches(names[-1], siblings, n=1):
        return f"did you mean {prefix}{close[0]}?"
    if elsewhere := [path for path in paths if path.split(".")[-1] == names[-1]]:
        return f"did you mean {_either(elsewhere)}?"
    return f"known are {', '.join(siblings)}"


class _Loader(yaml.SafeLoader):
    """YAML's plain data; a key that stands twice in a mapping is an error."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, yaml.Mark] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or not isinstance(
            loader.construct_object(key_node), str
        ):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
        if key_node.value in seen:
            first = seen[key_node.value].line + 1
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"the key {key_node.value!r} stands there twice, first in line {first}",
                key_node.start_mark,
            )
        seen[key_node.value] = key_node.start_mark
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


def _map(loader: _Loader, node: yaml.MappingNode) -> Any:
    values: dict[Any, Any] = {}
    yield values
    values.update(_mapping(loader, node))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _map)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
