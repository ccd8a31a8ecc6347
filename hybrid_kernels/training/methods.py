"""Pretrained models with each method's adapter on them: made, saved and loaded."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from huggingface_hub import ModelCard, try_to_load_from_cache
from peft import (
    BOFTConfig,
    HRAConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

from hybrid_kernels.cases.peft_butterflies import allow_butterflies_in_peft
from hybrid_kernels.training.data import LABELS
from hybrid_kernels.training.files import file_digest
from hybrid_kernels.training.method_config import (
    AnyMethod,
    BoftMethod,
    FullMethod,
    HraMethod,
    HybridMethod,
    LoraGaMethod,
    LoraMethod,
    OftMethod,
    PretrainedMethod,
    UrnnMethod,
)

DEMO = "demo"
DEMO_DECODER = "demo-decoder"
Batch = dict[str, torch.Tensor]
Task = Literal["classification", "causal_lm"]
TASK_TYPES = {"classification": TaskType.SEQ_CLS, "causal_lm": TaskType.CAUSAL_LM}
TRAINED = "trained.safetensors"
"""The file of a full fine-tuning: the parameters that trained, by name."""


def backend(method: AnyMethod) -> str:
    """Whose layers run."""
    return method.backend


def display_name(name: str) -> str:
    """How a report names the model."""
    return {DEMO: "multilingual-e5-small", DEMO_DECODER: "Gemma 3 270M"}.get(name, name)


def model_folder(name: str) -> str:
    """What `from_pretrained` is to load: a demo model's folder, or the folder or hub name as it is."""
    if name == DEMO:
        from hybrid_kernels.training.demo_model import build_demo_model

        return str(build_demo_model())
    if name == DEMO_DECODER:
        from hybrid_kernels.training.demo_decoder import build_demo_decoder

        return str(build_demo_decoder())
    if name.startswith((".", "~", "/")) and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(f"model folder {name!r} does not exist")
    return str(Path(name).expanduser())


def model_fingerprint(name: str) -> list[Any]:
    """What tells one model from another, wherever it is: a folder's files by content, or a hub name and its commit.

    The commit is that of the hub's cache, from which the model was loaded before; None where it is not there.
    """
    folder = Path(model_folder(name))
    if folder.is_dir():
        return [[file.name, file_digest(file)] for file in sorted(folder.iterdir()) if file.is_file()]
    cached = try_to_load_from_cache(name, "config.json")
    # The path of a cached file is …/snapshots/COMMIT/config.json.
    return [name, Path(cached).parent.name if isinstance(cached, str) else None]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_folder(name))
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error
    if tokenizer.pad_token is None:
        # Decoders have none; the attention mask keeps the padding out.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(name: str, pad_token_id: int, seed: int) -> tuple[PreTrainedModel, list[str]]:
    """The pretrained model in float32 with a classification head for `LABELS`.

    Returns (model, names of the modules that the pretrained weights lack). Those are the same for one seed, whatever
    adapter follows; they have to be trained and saved with it.
    """
    set_seed(seed)
    try:
        with _quiet():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                model_folder(name),
                num_labels=len(LABELS),
                id2label=dict(enumerate(LABELS)),
                label2id={label: i for i, label in enumerate(LABELS)},
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error
    model.config.pad_token_id = pad_token_id
    return model, sorted({key.rpartition(".")[0] for key in loading["missing_keys"]})


def load_decoder(name: str) -> PreTrainedModel:
    """The pretrained causal language model in float32."""
    try:
        with _quiet():
            return AutoModelForCausalLM.from_pretrained(model_folder(name), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _no_model(name, error) from error


def add_adapter(
    model: PreTrainedModel, head: list[str], method: AnyMethod, seed: int, task: Task | None = None
) -> PeftModel | PreTrainedModel:
    """Puts the method's adapter on a pretrained model, in place; for full fine-tuning, sets what trains.

    Args:
        model: from `load_classifier` or `load_decoder`.
        head: names of the modules that the pretrained weights lack; they are trained along and saved.
        seed: of the adapter's random start.
        task: "classification", or "causal_lm" for a decoder with its own language-model head; None for whichever the
            model's head is for.

    Returns the model to train, whose outputs are still the pretrained model's.
    """
    set_seed(seed)
    if isinstance(method, PretrainedMethod):
        raise ValueError(
            f"method {method.name or method.method!r} does not train, so there is nothing to add"
        )
    if isinstance(method, FullMethod):
        model.requires_grad_(True)
        model.get_input_embeddings().requires_grad_(method.embeddings)
        return model
    if task is None:
        task = "classification" if model.get_output_embeddings() is None else "causal_lm"
    # PEFT takes these two by itself for sequence classification; naming a module inside them would wrap it twice.
    inside = tuple(f"{name}." for name in ("classifier", "score"))
    modules_to_save = [name for name in head if not f"{name}.".startswith(inside)]
    common: dict[str, Any] = {
        "task_type": TASK_TYPES[task],
        "modules_to_save": modules_to_save or None,
        "target_modules": method.target_modules,
    }
    try:
        with warnings.catch_warnings():
            # PEFT asks Transformers for an attribute by its former name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            # A size that does not fit is an error, not another size.
            warnings.filterwarnings("error", message="Invalid `oft_block_size`")
            adapted = get_peft_model(model, _peft_config(method, common))
    except (ValueError, TypeError, UserWarning) as error:
        raise ValueError(f"method {method.name or method.method!r}: {error}") from error
    except re.error as error:
        raise ValueError(
            f"method {method.name or method.method!r}: a regular expression of target_modules or unitary_modules: "
            f"{error}"
        ) from error
    accelerate_if_asked(adapted, method)
    return adapted


def check_fits(method: AnyMethod, model: PreTrainedModel, head: list[str], task: Task | None = None) -> None:
    """ValueError, which names method and setting, unless the method's adapter goes on the model and can start there.

    Arguments are as in `add_adapter`; the model stays as it is.
    """
    adapted = add_adapter(skeleton(model), head, method, 0, task)
    if gradient_aligned(method):
        from hybrid_kernels.adapters.layers import named_adapters

        r = required(method, "r")
        least = min(min(layer.in_features, layer.out_features) for _, layer, _ in named_adapters(adapted))
        if 2 * r > least:
            raise ValueError(
                f"method {method.name or method.method!r}: r is {r}; it must be at most {least // 2}, as a "
                "gradient-aligned start takes 2 r singular vectors of each target layer"
            )


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The model's structure, without memory."""
    with torch.device("meta"):
        bare: torch.nn.Module = type(model)(copy.deepcopy(model.config))
    return bare  # type: ignore[return-value]


def accelerate_if_asked(model: PreTrainedModel | PeftModel, method: AnyMethod) -> None:
    """Puts PEFT's layers on this package's operators where the method says so; `load_trained` gives stock ones."""
    if getattr(method, "accelerate", False):
        import hybrid_kernels

        hybrid_kernels.accelerate(model)


def required(method: Any, size: str) -> int:
    """A size of a method that the budget leaves to nobody else."""
    value: int | None = getattr(method, size)
    if value is None:
        raise ValueError(
            f"method {method.name or method.method!r}: {size} is null; give a number, or fit the method to a budget"
        )
    return value


def _peft_config(method: AnyMethod, common: dict[str, Any]) -> PeftConfig:
    from hybrid_kernels.adapters import HybridConfig, StructuredUnitaryConfig

    match method:
        case LoraMethod():
            return LoraConfig(r=required(method, "r"), lora_alpha=method.alpha, **common)
        case LoraGaMethod():
            return HybridConfig(r=required(method, "r"), reflections=0, lora_alpha=method.alpha, **common)
        case HraMethod():
            return HRAConfig(r=required(method, "r"), **common)
        case OftMethod():
            block_size = required(method, "block_size")
            return OFTConfig(oft_block_size=block_size, use_cayley_neumann=False, **common)
        case BoftMethod():
            allow_butterflies_in_peft()
            return BOFTConfig(
                boft_block_size=required(method, "block_size"),
                boft_n_butterfly_factor=method.factors,
                **common,
            )
        case UrnnMethod():
            return StructuredUnitaryConfig(**common)
        case HybridMethod():
            return HybridConfig(
                r=required(method, "r"),
                reflections=required(method, "reflections"),
                lora_alpha=method.alpha,
                mixing=method.mixing,
                mixing_value=method.mixing_value,
                unitary_modules=method.unitary_modules,
                unitary_block_size=method.unitary_block_size,
                **common,
            )
        case FullMethod() | PretrainedMethod():
            raise TypeError(f"method {method.method!r} has no adapter")


def gradient_aligned(method: AnyMethod) -> TypeGuard[LoraGaMethod | HybridMethod]:
    """Whether the low-rank branch starts from gradients; it then carries a frozen copy of its start with it."""
    return isinstance(method, LoraGaMethod) or (
        isinstance(method, HybridMethod) and method.gradient_aligned and method.r != 0
    )


def initialize(model: torch.nn.Module, method: AnyMethod, batches: Iterable[Batch]) -> None:
    """LoRA-GA's and the hybrid's gradient-aligned start from a few training batches; nothing for other methods."""
    if gradient_aligned(method):
        from hybrid_kernels.adapters import initialize_gradient_aligned

        initialize_gradient_aligned(model, islice(batches, method.gradient_batches), progress=False)


def orthogonality_weight(method: AnyMethod) -> float:
    return method.orthogonality_weight if isinstance(method, HybridMethod) else 0.0


def save(model: PeftModel | PreTrainedModel, folder: Path, card: ModelCard | None = None) -> None:
    """Writes what was trained as safetensors, and a model card as README.md; each file is whole or not there.

    An adapter is a PEFT checkpoint. Full fine-tuning leaves TRAINED, the parameters that trained (a frozen embedding is
    the base model's); `load_trained` takes both.
    """
    from safetensors.torch import save_file

    from hybrid_kernels.adapters.files import files_into

    with files_into(folder) as temporary:
        if isinstance(model, PeftModel):
            model.save_pretrained(str(temporary))
        else:
            # named_parameters has what is tied once.
            trained = {
                name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad
            }
            save_file(trained, temporary / TRAINED, metadata={"format": "pt"})
        if card is not None:
            card.save(temporary / "README.md")


def load_trained(
    folder: Path, name: str, pad_token_id: int, seed: int, task: Task = "classification"
) -> PeftModel | PreTrainedModel:
    """A fresh pretrained model with what was saved on it; ValueError where the two do not fit or a file is damaged."""
    from safetensors import SafetensorError

    import hybrid_kernels.adapters  # noqa: F401  registers our methods with PEFT

    model = load_classifier(name, pad_token_id, seed)[0] if task == "classification" else load_decoder(name)
    try:
        if (folder / TRAINED).is_file():
            return _load_full(model, folder / TRAINED)
        config: Any = PeftConfig.from_pretrained(str(folder))
        if isinstance(config, BOFTConfig):
            allow_butterflies_in_peft()
        return PeftModel.from_pretrained(model, folder)
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"adapter checkpoint {str(folder)!r} does not load onto {name!r}: {error}; "
            "it is damaged, or was made for another model"
        ) from error


def _load_full(model: PreTrainedModel, file: Path) -> PreTrainedModel:
    from safetensors.torch import load_file

    trained = load_file(file)
    parameters = dict(model.named_parameters())
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    if lacking := [k for k, p in parameters.items() if k not in trained and id(p) not in embeddings]:
        raise ValueError(f"it lacks {len(lacking)} of {len(parameters)} parameters, first {lacking[0]}")
    with torch.no_grad():
        for key, value in trained.items():
            if key not in parameters or parameters[key].shape != value.shape:
                shape = tuple(parameters[key].shape) if key in parameters else None
                raise ValueError(f"it has {key} of shape {tuple(value.shape)}, the model {shape or 'none'}")
            parameters[key].copy_(value)
    return model.eval()


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Transformers from reporting the head it does not find, which is expected, and each file it reads."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _no_model(name: str, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        f"model {name!r} could not be loaded (allowed: {DEMO!r}, {DEMO_DECODER!r}, a Transformers folder, a hub name): "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    )
