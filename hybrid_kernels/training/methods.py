"""A pretrained sequence classifier with each method's adapter on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import HRAConfig, LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

from hybrid_kernels.training.config import HraMethod, HybridMethod, LoraMethod
from hybrid_kernels.training.data import LABELS

DEMO = "demo"
DEMO_DECODER = "demo-decoder"
Batch = dict[str, torch.Tensor]


def backend(method: LoraMethod | HraMethod | HybridMethod) -> str:
    """Whose layers run."""
    return "hybrid-kernels" if isinstance(method, HybridMethod) else "peft"


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
    """What tells one model from another: its name, and the files of a folder by size and time."""
    files = sorted(Path(model_folder(name)).glob("*.*"))
    return [name, [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]


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


def add_adapter(
    model: PreTrainedModel, head: list[str], method: LoraMethod | HraMethod | HybridMethod, seed: int
) -> PeftModel:
    """Puts the method's adapter on a model from `load_classifier`; the head is trained with it."""
    set_seed(seed)
    # PEFT takes these two by itself for sequence classification; naming a module inside them would wrap it twice.
    inside = tuple(f"{name}." for name in ("classifier", "score"))
    modules_to_save = [name for name in head if not f"{name}.".startswith(inside)]
    common: dict[str, Any] = {
        "task_type": TaskType.SEQ_CLS,
        "modules_to_save": modules_to_save,
        "target_modules": method.target_modules,
    }
    try:
        with warnings.catch_warnings():
            # PEFT asks Transformers for an attribute by its former name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return get_peft_model(model, _peft_config(method, common))
    except ValueError as error:
        raise ValueError(f"method {method.name or method.method!r}: {error}") from error


def _peft_config(method: LoraMethod | HraMethod | HybridMethod, common: dict[str, Any]) -> PeftConfig:
    if isinstance(method, LoraMethod):
        return LoraConfig(r=method.r, lora_alpha=method.alpha, **common)
    if isinstance(method, HraMethod):
        return HRAConfig(r=method.r, **common)
    from hybrid_kernels.adapters import HybridConfig

    return HybridConfig(
        r=method.r,
        reflections=method.reflections,
        lora_alpha=method.alpha,
        mixing=method.mixing,
        mixing_value=method.mixing_value,
        unitary_modules=method.unitary_modules,
        unitary_block_size=method.unitary_block_size,
        **common,
    )


def initialize(
    model: PeftModel, method: LoraMethod | HraMethod | HybridMethod, batches: Iterable[Batch]
) -> None:
    """The hybrid's gradient-aligned start from a few training batches; nothing for other methods."""
    if isinstance(method, HybridMethod) and method.gradient_aligned:
        from hybrid_kernels.adapters import initialize_gradient_aligned

        initialize_gradient_aligned(model, islice(batches, method.gradient_batches), progress=False)


def orthogonality_weight(method: LoraMethod | HraMethod | HybridMethod) -> float:
    return method.orthogonality_weight if isinstance(method, HybridMethod) else 0.0


def load_trained(folder: Path, name: str, pad_token_id: int, seed: int) -> PeftModel:
    """A fresh pretrained model with a saved adapter on it; ValueError where the two do not fit or a file is damaged."""
    from safetensors import SafetensorError

    import hybrid_kernels.adapters  # noqa: F401  registers the hybrid with PEFT

    model, _ = load_classifier(name, pad_token_id, seed)
    try:
        return PeftModel.from_pretrained(model, folder)
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"adapter checkpoint {str(folder)!r} does not load onto {name!r}: {error}; "
            "it is damaged, or was made for another model"
        ) from error


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
