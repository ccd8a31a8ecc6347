import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from hybrid_kernels.evaluation import translation_scores
from hybrid_kernels.evaluation.translation_scores import (
    bleu_tokenizer,
    corpus_score,
    directional_balance,
    score_translations,
    sentence_statistics,
)

REFERENCES = {
    "en": [
        "The cat sat on the mat, didn't it?",
        "Good morning, everyone!",
        "It rained for 1,234.5 hours in the U.S.",
        "We need more water for the fields.",
        "The train leaves at noon.",
        "She said nothing at all.",
    ],
    "zh": [
        "猫坐在垫子上。",
        "大家早上好！",
        "在美国下了1234.5小时的雨。",
        "我们的田地需要更多的水。",
        "火车中午出发。",
        "她什么也没说。",
    ],
    "th": ["แมวนั่งบนเสื่อ", "สวัสดีตอนเช้า", "ฝนตก", "เราต้องการน้ำ", "รถไฟออกตอนเที่ยง", "เธอไม่ได้พูดอะไร"],
}


def worse(lines, every):
    return [line[: -len(line) // 3] + line[:3] if i % every == 0 else line for i, line in enumerate(lines)]


def sacrebleu(tmp_path, language, *systems, extra=()):
    """sacrebleu's own command on files."""
    paths = []
    for i, lines in enumerate((REFERENCES[language], *systems)):
        paths.append(tmp_path / f"{language}-{i}.txt")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(paths[0]), "-i", *map(str, paths[1:])]
    options = [
        "-m",
        "bleu",
        "chrf",
        "--chrf-word-order",
        "2",
        "-tok",
        bleu_tokenizer(language),
        "--width",
        "10",
    ]
    done = subprocess.run([*command, *options, *extra], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("language", ["en", "zh", "th"])
def test_scores_and_signatures_are_those_of_sacrebleus_command(tmp_path, language):
    hypotheses = worse(REFERENCES[language], 2)
    found = score_translations(hypotheses, REFERENCES[language], language)
    bleu, chrf = json.loads(sacrebleu(tmp_path, language, hypotheses))
    assert found["bleu"] == pytest.approx(bleu["score"], abs=1e-9) and 0 < found["bleu"] < 100
    assert found["chrf"] == pytest.approx(chrf["score"], abs=1e-9)
    assert found["bleu_signature"] == bleu["signature"] and found["chrf_signature"] == chrf["signature"]
    assert "nw:2" in found["chrf_signature"] and found["n"] == 6


@pytest.mark.parametrize("language", ["en", "zh", "th"])
@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_sums_of_sentences_score_as_the_corpus(metric, language):
    hypotheses, references = worse(REFERENCES[language], 2), REFERENCES[language]
    sums = sentence_statistics(metric, hypotheses, references, language)
    some = [0, 2, 2, 5]
    found = corpus_score(metric, np.stack([sums.sum(0), sums[some].sum(0)]), language)
    again = score_translations([hypotheses[i] for i in some], [references[i] for i in some], language)
    assert found[0] == pytest.approx(score_translations(hypotheses, references, language)[metric], abs=1e-9)
    assert found[1] == pytest.approx(again[metric], abs=1e-9)


def test_tokenizers_suit_the_target(monkeypatch, tmp_path):
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    assert [bleu_tokenizer(code) for code in ("zh", "zho_Hant", "en", "deu_Latn", "ur")] == ["zh"] * 2 + [
        "13a"
    ] * 3
    assert bleu_tokenizer("th") == bleu_tokenizer("tha_Thai") == "char"
    # Japanese: by words where MeCab is installed.
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bleu_tokenizer("ja") == "char"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("json"))
    assert bleu_tokenizer("ja") == bleu_tokenizer("jpn_Jpan") == "ja-mecab"
    # spBLEU where sacrebleu has its model already.
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "flores200sacrebleuspm").touch()
    assert bleu_tokenizer("th") == "flores200"
    # which is of no use without sentencepiece.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bleu_tokenizer("th") == "char"


def test_over_characters_chrf_leads():
    assert score_translations(REFERENCES["th"], REFERENCES["th"], "th")["first"] == (
        "chrf" if bleu_tokenizer("th") == "char" else "bleu"
    )
    assert score_translations(REFERENCES["zh"], REFERENCES["zh"], "zh")["first"] == "bleu"


def test_balance_is_to_english_minus_from_english():
    scores = {"de-en": 40.0, "en-de": 30.0, "zh-en": 25.0, "en-zh": 28.0, "fr-en": 50.0, "de-fr": 1.0}
    found = directional_balance({name: {"chrf": value} for name, value in scores.items()})
    assert found["languages"] == {
        "de": {"to_english": 40.0, "from_english": 30.0, "difference": 10.0},
        "zh": {"to_english": 25.0, "from_english": 28.0, "difference": -3.0},
    }
    assert found["mean"] == pytest.approx(3.5)
    assert directional_balance({"de-fr": {"chrf": 1.0}})["mean"] is None
    flores = {"deu_Latn-eng_Latn": {"chrf": 4.0}, "eng_Latn-deu_Latn": {"chrf": 1.0}}
    assert directional_balance(flores)["languages"]["deu_Latn"]["difference"] == 3.0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="equally many and at least one, got 1 and 2"):
        score_translations(["a"], ["a", "b"], "en")
    with pytest.raises(ValueError, match="got 0 and 0"):
        score_translations([], [], "en")
    assert translation_scores.METRICS == ("bleu", "chrf")
