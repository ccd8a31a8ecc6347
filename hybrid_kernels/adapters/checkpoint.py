"""A saved adapter made ready to serve: as a LoRA, or merged into its base model (`hybrid-kernels export`)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import transformers
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoTokenizer

import hybrid_kernels.adapters.model  # noqa: F401  registers the hybrid with PEFT
from hybrid_kernels.adapters.export import check_exportable, export_lora
from hybrid_kernels.adapters.files import check_folder, files_into

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
DTYPES = ("auto", "float32", "bfloat16", "float16")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
HEADS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
"""Where Transformers' classification models keep the layer that has a row for each label."""


@dataclass(frozen=True)
class Exported:
    """What `export_checkpoint` wrote; printed, a line and a line for each of ``notes``, what its user should know."""

    folder: Path
    what: str
    layers: int
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def __str__(self) -> str:
        line = f"{self.folder}: {self.what}, {self.layers} layers, {self.size / 2**20:.1f} MiB"
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])


def export_checkpoint(
    adapter: Path,
    out: Path,
    *,
    model: str | None = None,
    adapter_name: str = "default",
    merged: bool = False,
    dtype: str = "auto",
) -> Exported:
    """Load a saved adapter on its base model and write it as a LoRA (`export_lora`) or, ``merged``, as the whole model.

    Args:
        adapter: a folder that `save_pretrained` wrote, of any PEFT method that has layers, ours included.
        out: the folder to write. For a merged model it must be new or empty: Transformers would take other weights or
            an adapter in it for parts of the model.
        model: the base model, a local folder or hub name; by default the one that adapter_config.json names.
        adapter_name: which of several adapters; all but "default" are in subfolders of ``adapter``.
        dtype: what the base model is loaded in and a merged one is written in; "auto" is that of its checkpoint.

    Raises ValueError or an OSError that says what does not fit, before anything is written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it may be one of {', '.join(map(repr, DTYPES))}")
    source = _adapter_folder(adapter, adapter_name)
    check_folder("out", out)
    if out.resolve() in (adapter.resolve(), source.resolve()):
        raise ValueError(f"out is {str(out)!r}, the adapter's own folder; name another")
    if merged and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(
            f"out is {str(out)!r}, which has files in it; a merged model needs a new folder"
        )

    config = PeftConfig.from_pretrained(str(source))
    if not merged:
        check_exportable(adapter_name, config)  # before a large model is loaded
    elif config.is_prompt_learning:
        raise ValueError(f"adapter {str(source)!r} is {config.peft_type.value}, which has no layers to merge")
    if model is not None:
        config.base_model_name_or_path, config.revision = model, None
    tokenizer = _tokenizer(source) or _tokenizer(adapter)
    peft_model, notes = _load(source, config, tokenizer, dtype)
    if not merged:
        export_lora(peft_model, out)
        ranks = _ranks(out)
        low, high = min(ranks), max(ranks)
        return Exported(out, f"LoRA of rank {low if low == high else f'{low} to {high}'}", len(ranks), notes)

    if not hasattr(peft_model, "merge_and_unload"):
        raise ValueError(f"adapter {str(source)!r} is {config.peft_type.value}, which PEFT does not merge")
    tuner: Any = peft_model.base_model
    layers = sum(isinstance(module, tuner.tuner_layer_cls) for module in peft_model.modules())
    try:
        whole = peft_model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(f"adapter {str(source)!r} cannot be merged into its base model: {error}") from error
    tokenizer = tokenizer or _tokenizer(config.base_model_name_or_path, config.revision)
    if tokenizer is None:
        notes.append("there is no tokenizer beside the adapter or the base model")
    with files_into(out) as temporary:
        whole.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    return Exported(
        out, f"{type(whole).__name__} in {str(whole.dtype).removeprefix('torch.')}", layers, notes
    )


def _adapter_folder(adapter: Path, adapter_name: str) -> Path:
    """Where `save_pretrained` puts an adapter of this name."""
    if not adapter.is_dir():
        raise FileNotFoundError(f"adapter is {str(adapter)!r}; there is no such folder")
    folder = adapter if adapter_name == "default" else adapter / adapter_name
    if not (folder / CONFIG).is_file():
        found = sorted(file.parent.name for file in adapter.glob(f"*/{CONFIG}"))
        if (adapter / CONFIG).is_file():
            found.insert(0, "default")
        known = f"it has adapters {found}: choose one by adapter name" if found else "it has no adapter"
        raise FileNotFoundError(
            f"adapter {str(adapter)!r} has no {adapter_name!r} ({folder / CONFIG}); {known}"
        )
    if not any((folder / file).is_file() for file in (WEIGHTS, "adapter_model.bin")):
        raise FileNotFoundError(f"adapter {str(folder)!r} has no {WEIGHTS}")
    return folder


def _load(source: Path, config: Any, tokenizer: Any, dtype: str) -> tuple[PeftModel, list[str]]:
    """The base model under the adapter, and notes. ValueError where the two do not fit."""
    base, lacking, notes = _load_base(source, config, dtype)
    if tokenizer is not None and len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer))  # as PEFT's AutoPeftModel does
    name = config.base_model_name_or_path
    try:
        with warnings.catch_warnings():
            # PEFT leaves what a checkpoint lacks at its start, and what the model lacks away.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(base, str(source), config=config)
        unexpected = model.load_adapter(str(source), "default").unexpected_keys
    except (SafetensorError, RuntimeError, KeyError, ValueError, UserWarning) as error:
        raise _unfit(source, name, config, str(error)) from error
    if unexpected:
        raise _unfit(
            source, name, config, f"the model lacks {len(unexpected)} tensors, first {unexpected[0]}"
        )
    saved = getattr(config, "modules_to_save", None) or ()
    random = [key for key in lacking if not any(f".{module}." in f".{key}" for module in saved)]
    if random:
        notes.append(
            f"neither {name!r} nor the adapter has weights for {', '.join(random)}: they are new and untrained"
        )
    return model.eval(), notes


def _load_base(source: Path, config: Any, dtype: str) -> tuple[Any, list[str], list[str]]:
    """The base model, the names of the tensors that its checkpoint lacks, and notes."""
    name = config.base_model_name_or_path
    if not name:
        raise ValueError(f"adapter {str(source)!r} names no base model; give model (--model)")
    if name.startswith((".", "~", "/")) and not Path(name).expanduser().is_dir():
        raise FileNotFoundError(
            f"base model {name!r} is no folder here; give model (--model), a local folder or a hub name"
        )
    name, notes = str(Path(name).expanduser()), []
    loader = _loader(config)
    if loader is None:
        loader = AutoModel
        notes.append(f"{source / CONFIG} has no task_type and no model class: the base model is an AutoModel")
    options: dict[str, Any] = {}
    try:
        labels = _labels(source)
        if (
            labels is not None
            and labels != AutoConfig.from_pretrained(name, revision=config.revision).num_labels
        ):
            # The base model's head, if it has one, is replaced by the adapter's.
            options = {"num_labels": labels, "ignore_mismatched_sizes": True}
        base, loading = loader.from_pretrained(
            name, revision=config.revision, dtype=dtype, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"base model {name!r} could not be loaded: {first}; give model (--model), a local folder or a hub name"
        ) from error
    return base, sorted(loading["missing_keys"]), notes


def _loader(config: Any) -> Any:
    """The class whose `from_pretrained` loads the base model, by PEFT's mapping; None where nothing tells."""
    if config.task_type in MODEL_TYPE_TO_PEFT_MODEL_MAPPING:
        peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING[config.task_type]
        return getattr(peft, f"Auto{peft_class.__name__}")._target_class
    mapping = getattr(config, "auto_mapping", None) or {}
    # No other library: a configuration must not choose what is imported.
    if str(mapping.get("parent_library")).split(".")[0] == "transformers":
        return getattr(transformers, mapping["base_model_class"], None)
    return None


def _labels(source: Path) -> int | None:
    """How many labels the adapter's classification head has; None where it has none."""
    if not (source / WEIGHTS).is_file():
        return None
    try:
        with safe_open(source / WEIGHTS, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  no dictionary
                if f".{key}".endswith(tuple(f".{head}" for head in HEADS)):
                    return int(file.get_slice(key).get_shape()[0])
    except SafetensorError as error:
        raise ValueError(f"adapter checkpoint {str(source / WEIGHTS)!r} cannot be read: {error}") from error
    return None


def _ranks(folder: Path) -> list[int]:
    """The rank of each layer of a LoRA's checkpoint."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return [file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith(".lora_A.weight")]  # noqa: SIM118


def _tokenizer(name: str | Path, revision: str | None = None) -> Any:
    """The tokenizer beside a model or adapter; None where there is none."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None  # Transformers would make an empty one
    try:
        return AutoTokenizer.from_pretrained(str(folder), revision=revision)
    except (OSError, ValueError):
        return None


def _unfit(source: Path, name: str, config: Any, reason: str) -> ValueError:
    butterflies = getattr(config, "boft_n_butterfly_factor", 1)
    hint = f"; PEFT makes BOFT's {butterflies} factors with a CUDA extension alone" if butterflies > 1 else ""
    return ValueError(
        f"adapter checkpoint {str(source)!r} does not load onto {name!r}: {reason}{hint}; it is damaged, or was made "
        "for another model"
    )
