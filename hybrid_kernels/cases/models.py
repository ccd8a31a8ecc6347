"""A whole training step of a model from its configuration: forward, loss, and backward to its adapters.

The weights are random. There is no optimizer and no gradient checkpointing, and the model's own dropout is off. The
step starts at input embeddings that ask for a gradient, so that the frozen model's is the floor of the others.
Adapters are on all linear layers but the head, off their start, in the dtype of the weights. Models with a language
modelling head take its loss; encoders, whose head is small beside them, a linear function of what they give out.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import peers as peer
from .base import BenchmarkCase, Builders, Shape, Side, flattened, generator, shape_name
from .configs import layer_counts, load_config, with_layers, without_weights

FROZEN, HYBRID = "frozen model", "hybrid 16 + 16"
LORA = "LoRA r=32"
PASSES = ("forward", "both")
SWEEPS: dict[str, tuple[int, ...]] = {"tokens": (64, 128, 256, 512, 1024)}


def cases(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    batch: int = 1,
    tokens: int = 512,
    methods: Sequence[str] = peer.ACCELERATED,
    sweep: str | None = None,
    peers: bool = True,
) -> list[BenchmarkCase]:
    """The model ``name`` (`configs.load_config`), cut to so many ``layers``, on ``batch`` sequences of ``tokens``.

    The hybrid against the frozen model, PEFT's LoRA of the same rank and, where installed, Liger; and each of
    ``methods`` (of `peers.METHODS`), stock against accelerated ("-accelerate-…"). ``sweep`` "tokens": the first of them
    alone, at `SWEEPS`' lengths that the model has positions for. ``peers``: with PEFT's methods and Liger. Raises
    ValueError for numbers, methods or models that cannot be measured, and what `load_config` raises.
    """
    for argument, value in (("batch", batch), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; it must be at least 1")
    unknown = [method for method in methods if method not in peer.METHODS]
    if unknown:
        raise ValueError(
            f"methods has {unknown[0]!r}; each may be one of {', '.join(map(repr, peer.METHODS))}"
        )
    if sweep is not None and sweep not in SWEEPS:
        raise ValueError(f"sweep is {sweep!r}; of a model it may be 'tokens'")
    config = prepared(load_config(name), name)
    if layers is not None:
        config = with_layers(config, layers)
    lengths = (tokens,) if sweep is None else SWEEPS[sweep]
    positions = getattr(config, "max_position_embeddings", None) or max(lengths)
    if positions < max(lengths) and sweep is None:
        raise ValueError(f"tokens is {tokens}; {name!r} has positions for {positions}")
    lengths = tuple(length for length in lengths if length <= positions)
    path = Path(name).expanduser()
    if path.exists():
        path = path.resolve()
        # Folders of one name hold other models, and one folder another after an edit: their results are not the same.
        digest = hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest()[:8]
        short = f"{(path.parent if path.is_file() else path).name}-{digest}"
    else:
        short = path.name
    depth = {"layers": max(layer_counts(config).values())} if layer_counts(config) else {}

    def case(kind: str, length: int, sides: Any, ours: str, beside: Sequence[str]) -> BenchmarkCase:
        shape = {**depth, "batch": batch, "tokens": length}
        title = f"{short}{kind}"
        notes = peer.notes(tuple(beside), device)
        if peers and kind == "" and (liger := peer.version("liger_kernel", "liger-kernel")):
            notes += (
                f"Liger {liger}: without its rotary embedding, which cannot be had for one model alone",
            )

        def builders() -> Mapping[str, Callable[[], Side]]:
            return sides(Model(config, title, shape, dtype, device))

        return BenchmarkCase(
            kind="model",
            name=title,
            shape=shape,
            dtype=dtype,
            device=device,
            builders=builders,
            ours=ours,
            floor=FROZEN,
            passes=PASSES,
            sweep=sweep,
            notes=notes,
        )

    beside_hybrid = functools.partial(_hybrid_sides, peers=peers)
    if sweep is not None:
        return [case(f"-by-{sweep}", length, beside_hybrid, HYBRID, (LORA,)) for length in lengths]
    return [
        case("", tokens, beside_hybrid, HYBRID, (LORA,)),
        *(
            case(
                f"-accelerate-{method.replace(' ', '-')}",
                tokens,
                functools.partial(_accelerated_sides, method=method),
                peer.accelerated(method),
                (method,),
            )
            for method in (methods if peers else ())
        ),
    ]


def _auto_class(config: Any) -> Any:
    """Transformers' class of models for the step: with the head, or without where that is an encoder's."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if config.is_encoder_decoder:
        classes: list[Any] = [
            (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, transformers.AutoModelForSeq2SeqLM)
        ]
    else:
        classes = [
            (auto.MODEL_FOR_MASKED_LM_MAPPING, transformers.AutoModel),
            (auto.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.AutoModelForCausalLM),
        ]
    return next((model for mapping, model in classes if type(config) in mapping), None)


def prepared(config: Any, name: str) -> Any:
    """A copy of the configuration for a training step; ValueError for what is no language model."""
    config = copy.deepcopy(config)
    auto_class = _auto_class(config)
    if auto_class is None:
        raise ValueError(f"model is {name!r}, of type {config.model_type!r}; it must be a language model")
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    config.use_cache = False
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id or 0
    forward = type(without_weights(auto_class, config)).forward
    if "inputs_embeds" not in inspect.signature(forward).parameters:
        raise ValueError(
            f"model is {name!r}, of type {config.model_type!r}; it must be one whose forward takes inputs_embeds"
        )
    return config


class Model:
    """The frozen model and its inputs, made once, when a side is made that needs them, and the sides over them."""

    def __init__(
        self, config: Any, name: str, shape: Shape, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._config, self._shape = config, (shape["batch"], shape["tokens"])
        self._key = "model", name, shape_name(shape)
        self.seed, self.dtype, self.device = generator(0, *self._key).initial_seed(), dtype, device

    @functools.cached_property
    def frozen(self) -> Any:
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            # Random numbers by the billion are the device's work.
            with peer.seeded(self.seed, self.device), self.device:
                model = _auto_class(self._config).from_config(copy.deepcopy(self._config), dtype=self.dtype)
        finally:
            torch.set_default_dtype(default)
        return model.requires_grad_(False).train()

    def _drawn(self, what: str, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator(0, *self._key, what)).to(self.device, self.dtype)

    @functools.cached_property
    def embeddings(self) -> Tensor:
        width = self.frozen.get_input_embeddings().embedding_dim
        return self._drawn("embeddings", *self._shape, width).requires_grad_()

    @functools.cached_property
    def labels(self) -> Tensor:
        random = generator(0, *self._key, "labels")
        return torch.randint(self._config.vocab_size, self._shape, generator=random).to(self.device)

    @functools.cached_property
    def direction(self) -> Tensor:
        return self._drawn("direction", self._config.hidden_size)

    def loss(self, model: nn.Module) -> Tensor:
        if self.frozen.get_output_embeddings() is not None:
            loss = model(inputs_embeds=self.embeddings, labels=self.labels).loss
        else:
            outputs = flattened(model(inputs_embeds=self.embeddings).to_tuple())
            loss = torch.stack([(output @ self.direction).sum() for output in outputs]).sum()
        return loss.to(torch.float32)

    def side(self, model: nn.Module, backend: str = "auto") -> Side:
        leaves = peer.trained(model)
        parameters = sum(leaf.numel() for leaf in leaves)
        return Side(
            lambda: self.loss(model),
            [self.embeddings, *leaves],
            [torch.ones((), device=self.device)],
            backend,
            parameters=parameters,
        )

    def hybrid(self, model: nn.Module) -> Any:
        with peer.seeded(self.seed, self.device):
            return peer.hybrid_model(model)

    def under_peft(self, method: str, model: nn.Module) -> Any:
        with peer.seeded(self.seed, self.device):
            return peer.under_peft(model, method, "all-linear")

    def copy(self) -> Any:
        return peer.shared_copy(self.frozen)


def _hybrid_sides(model: Model, peers: bool) -> Builders:
    hybrid = functools.cache(lambda: model.hybrid(model.copy()))
    result: Builders = {
        FROZEN: lambda: model.side(model.frozen),
        HYBRID: lambda: model.side(hybrid()),
        "hybrid, eager": lambda: model.side(hybrid(), "eager"),
    }
    if model.device.type == "cuda":
        result["hybrid, Triton"] = lambda: model.side(hybrid(), "triton")
    if peers:
        result[peer.stock(LORA)] = lambda: model.side(model.under_peft(LORA, model.copy()))
        if peer.version("liger_kernel", "liger-kernel"):
            result[f"Liger + {peer.stock(LORA)}"] = lambda: model.side(
                model.under_peft(LORA, peer.with_liger(model.copy()))
            )
            result[f"Liger + {HYBRID}"] = lambda: model.side(model.hybrid(peer.with_liger(model.copy())))
    return result


def _accelerated_sides(model: Model, method: str) -> Builders:
    under_peft = functools.cache(lambda: model.under_peft(method, model.copy()))

    def fast(backend: str = "auto") -> Side:
        return model.side(peer.on_our_operators(under_peft()), backend)

    return {
        FROZEN: lambda: model.side(model.frozen),
        peer.stock(method): lambda: model.side(under_peft()),
        peer.accelerated(method): fast,
        f"{peer.accelerated(method)}, eager": lambda: fast("eager"),
    }
