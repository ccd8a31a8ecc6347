"""Transformers models by name: their configurations, and the linear layers that adapters go on, without any weights."""

from __future__ import annotations

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: Models for measuring here, by name: Llama-shaped, in sizes that a CPU and a GPU are busy with. Published checkpoints
#: of one billion parameters have the layers of llama-1b; llama-small leaves the products the most of a CPU's time that
#: rounds of seconds allow, and its vocabulary is small because a head of 32000 words would be most of so small a model.
BUILT_IN: dict[str, dict[str, int]] = {
    "llama-tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
    "llama-small": {
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 2048,
    },
    "llama-medium": {
        "hidden_size": 2048,
        "num_hidden_layers": 4,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 8192,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
}
POSITIONS = 8192
# What configurations call the number of layers; where two stacks have one each, both are cut.
LAYER_COUNTS = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
MEANING = (
    f"it may be one of {', '.join(map(repr, BUILT_IN))}, a Transformers model type such as 'llama', 'gemma2' or "
    "'bert', a folder with a config.json, such a file, or the name of a model on the Hugging Face hub"
)


@dataclass(frozen=True)
class LinearShape:
    """Linear layers of one shape in a model: how many, and the name of the first of them."""

    in_features: int
    out_features: int
    bias: bool
    count: int
    example: str


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"models by name need the package {error.name!r}: pip install 'hybrid-kernels[peft]'",
            name=error.name,
        ) from error
    return transformers


def load_config(name: str) -> Any:
    """The Transformers configuration of a model, that of its text part where it has several.

    ``name`` is one of `BUILT_IN`; else a folder with a config.json, or such a file; else a Transformers model type,
    which gives that type's default sizes and needs no network; else the name of a model on the Hugging Face hub.
    Raises ValueError, or OSError where a file or the hub cannot be read, for anything else, and ModuleNotFoundError
    where Transformers is not installed.
    """
    transformers = _transformers()
    if name in BUILT_IN:
        return transformers.LlamaConfig(**BUILT_IN[name], max_position_embeddings=POSITIONS)
    path = Path(name).expanduser()
    if name and path.exists():
        if path.is_dir() and not (path / "config.json").is_file():
            raise ValueError(f"model is {name!r}, a folder without a config.json; {MEANING}")
        return _read(transformers, str(path), name)
    if name in transformers.CONFIG_MAPPING:
        try:
            return transformers.AutoConfig.for_model(name).get_text_config()
        except Exception as error:  # some types have no sizes of their own
            raise ValueError(
                f"model is {name!r}, a type without default sizes: {_first(error)}; {MEANING}"
            ) from error
    known = [*BUILT_IN, *transformers.CONFIG_MAPPING.keys()]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return _read(transformers, name, name, hint)


def _read(transformers: Any, where: str, name: str, hint: str = "") -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(where).get_text_config()
    except OSError as error:
        raise OSError(f"model is {name!r} and cannot be read: {_first(error)}; {MEANING}{hint}") from error
    except (
        Exception
    ) as error:  # Transformers, its hub client and their validators raise errors of many classes
        raise ValueError(f"model is {name!r}: {_first(error)}; {MEANING}{hint}") from error


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def layer_counts(config: Any) -> dict[str, int]:
    """The number of layers in each stack of a model, by the name that its configuration has for it; empty if none."""
    return {
        config.attribute_map.get(key, key): getattr(config, key)
        for key in LAYER_COUNTS
        if hasattr(config, key)
    }


def with_layers(config: Any, layers: int) -> Any:
    """A copy of a configuration with so many layers in each of its stacks, at least 1 and at most what it has.

    What has an entry for each layer, such as ``layer_types``, is cut to its first ones. ValueError for another number,
    or for one that the model's kind cannot have.
    """
    counts = layer_counts(config)
    if not counts:
        raise ValueError(f"a configuration of type {config.model_type!r} does not say how many layers it has")
    deepest = max(counts.values())
    if not 1 <= layers <= deepest:
        raise ValueError(f"layers is {layers}; the model has {deepest}, so that it may be from 1 to that")
    values = config.to_dict()
    depths = set(counts.values())
    for key, value in values.items():
        if isinstance(value, (list, tuple)) and len(value) in depths:
            values[key] = value[:layers]
        if key == "per_layer_config" and value:
            values[key] = {layer: entry for layer, entry in value.items() if int(layer) < layers}
    values.update({key: min(layers, count) for key, count in counts.items()})
    try:
        return type(config).from_dict(values)
    except Exception as error:  # validators of configurations raise errors of many classes
        raise ValueError(
            f"layers is {layers}, which a model of type {config.model_type!r} cannot have: {_first(error)}"
        ) from error


def without_weights(auto_class: Any, config: Any) -> Any:
    """The model of a configuration on the meta device; ValueError where Transformers cannot build it."""
    try:
        with torch.device("meta"):
            return auto_class.from_config(copy.deepcopy(config))
    except Exception as error:  # sizes that do not fit each other fail in any way
        raise ValueError(
            f"Transformers cannot build a model of type {config.model_type!r} from this configuration: "
            f"{type(error).__name__}: {_first(error)}"
        ) from error


def linear_layers(config: Any) -> list[LinearShape]:
    """The linear layers of a model, by shape, in the order in which the model has them; the output head is left out.

    These are what PEFT calls "all-linear": `torch.nn.Linear` and Transformers' Conv1D (GPT-2), whose weight is stored
    transposed. The model is built without memory for weights. ValueError where Transformers cannot build it, or it has
    no such layer.
    """
    from transformers.pytorch_utils import Conv1D

    model = without_weights(_transformers().AutoModel, config)
    found: dict[tuple[int, int, bool], list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            key = module.in_features, module.out_features, module.bias is not None
        elif isinstance(module, Conv1D):
            key = module.nx, module.nf, True
        else:
            continue
        found.setdefault(key, []).append(name)
    if not found:
        raise ValueError(
            f"a model of type {config.model_type!r} has no linear layers that adapters could go on"
        )
    return [LinearShape(*key, count=len(names), example=names[0]) for key, names in found.items()]
