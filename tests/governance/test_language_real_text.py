"""Targets of the language step on real text: clean sentences, planted foreign ones, natural noise, calibration."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from hybrid_kernels.governance import identify
from hybrid_kernels.governance.scripts import SCRIPTS, letters, scripts_of
from tests.governance.language_support import LANGUAGES, Judged

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
pytestmark = pytest.mark.skipif(
    not (DATA / "xnli").is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)"
)
_NAMES = """
    arb_Arab bul_Cyrl deu_Latn ell_Grek eng_Latn spa_Latn fra_Latn hin_Deva rus_Cyrl swh_Latn tha_Thai tur_Latn urd_Arab
    vie_Latn zho_Hans
"""
FLORES = dict(zip(LANGUAGES, _NAMES.split(), strict=True))


def lines(*path, step=1):
    return DATA.joinpath(*path).read_text(encoding="utf-8").split("\n")[:-1][::step]


def flores(language, step=1):
    return lines("flores200_dataset", "dev", f"{FLORES[language]}.dev", step=step)


def ntrex(language, step=1):
    return lines("ntrex", f"ntrex.{language}.txt", step=step)


def hypotheses(language, step=1):
    """Without those in another script: romanised Urdu and Hindi, English Thai."""
    texts = [line.split("\t")[1] for line in lines("xnli", f"dev-{language}.tsv", step=step)]
    names = [SCRIPTS[script] for script in scripts_of(language)]
    return [text for text, script in zip(texts, letters(texts).dominant(), strict=True) if script in names]


def labelled(source, step=1):
    """(texts, their languages)."""
    rows = [(text, language) for language in LANGUAGES for text in source(language, step)]
    return [text for text, _ in rows], [language for _, language in rows]


def by_language(languages, hits):
    return {
        code: np.mean([hit for own, hit in zip(languages, hits, strict=True) if own == code])
        for code in LANGUAGES
    }


@pytest.mark.parametrize(("source", "step"), [(flores, 2), (ntrex, 4)])
def test_clean_sentences_are_kept_and_hardly_flagged(source, step):
    texts, languages = labelled(source, step)
    found = Judged([texts], [languages])
    rejected = by_language(languages, [row in found.rejected() for row in range(len(texts))])
    # NTREX leaves one sentence, "Il faut bien le faire.", in French in most languages; it is 0.2 % of this part.
    assert max(rejected.values()) <= (0 if source is flores else 0.003), rejected
    switched = by_language(languages, found.features["switched_0"] >= 0.25)
    assert max(switched.values()) <= 0.005, switched


@pytest.mark.parametrize(("source", "step", "target"), [(flores, 1, 0.995), (hypotheses, 3, 0.985)])
def test_languages_are_assigned(source, step, target):
    texts, languages = labelled(source, step)
    found = Judged([texts])
    assert np.mean(found.features["language_0"] == np.array(languages, object)) >= target
    assert np.mean(np.array(found.languages[0], object) == np.array(languages, object)) >= target


@pytest.mark.parametrize("source", [flores, hypotheses])
def test_languages_outside_the_set_are_rejected(source):
    draw = random.Random(0)
    claimed, unclaimed = [], []
    for language in LANGUAGES:
        texts, wanted = source(language, 10), [code for code in LANGUAGES if code != language]
        claimed.append(
            len(Judged([texts], [draw.choices(wanted, k=len(texts))], wanted).rejected()) / len(texts)
        )
        unclaimed.append(len(Judged([texts], languages=wanted).rejected()) / len(texts))
    assert min(claimed) >= 0.95, dict(zip(LANGUAGES, claimed, strict=True))
    assert min(unclaimed) >= 0.95, dict(zip(LANGUAGES, unclaimed, strict=True))


def test_a_foreign_side_does_not_hide_behind_a_good_one():
    for position in (0, 1):
        sides = [], []
        claims = []
        for i, language in enumerate(LANGUAGES):
            other = LANGUAGES[(i + 4) % len(LANGUAGES)]
            own, foreign = flores(language, 12), flores(other, 12)
            sides[position].extend(foreign)
            sides[1 - position].extend(own)
            claims.extend([language] * len(own))
        found = Judged(sides, [claims, claims])
        caught = {
            int(r)
            for o in found.objections
            if o.rejects and o.column == ("one", "other")[position]
            for r in o.rows
        }
        assert len(caught) / len(claims) >= 0.98
        assert not any(
            o.rejects and o.column == ("other", "one")[position] and len(o.rows) > 1 for o in found.objections
        )


def test_the_variants_of_chinese_are_told_apart():
    simplified = flores("zh", 2)
    traditional = lines("flores200_dataset", "dev", "zho_Hant.dev", step=2)
    for tag, own, other in (("zh-Hans", simplified, traditional), ("zh-Hant", traditional, simplified)):
        found = Judged([[*own, *other]], [[tag] * (len(own) + len(other))], [tag, "en"])
        assert [o.reason for o in found.objections] == ["wrong script"]
        assert set(found.objections[0].rows.tolist()) == set(range(len(own), len(own) + len(other)))


def test_natural_romanised_hypotheses_are_named():
    for language, shares in (("ur", (0.04, 0.1)), ("hi", (0.02, 0.05))):
        texts = [line.split("\t")[1] for line in lines("xnli", f"dev-{language}.tsv")]
        found = Judged([texts], [[language] * len(texts)])
        romanised = sum(len(o.rows) for o in found.objections if o.reason == "romanised")
        assert shares[0] <= romanised / len(texts) <= shares[1]
    arabic = lines("flores200_dataset", "dev", "arb_Latn.dev", step=4)
    found = Judged([arabic], [["ar"] * len(arabic)])
    assert sum(len(o.rows) for o in found.objections if o.reason == "romanised") >= 0.97 * len(arabic)


def test_the_noisy_swahili_premises():
    texts = [json.loads(line)["premise"] for line in lines("xnli_train", "train-sw.jsonl", step=6)]
    found = Judged([texts], [["sw"] * len(texts)])
    assert 0.06 <= len(found.rejected()) / len(texts) <= 0.12
    named = [detail for o in found.objections if o.rejects for detail in o.detail]
    assert sum("looks like en" in detail for detail in named) >= 0.8 * len(named)
    [switched] = [o for o in found.objections if o.reason == "code-switched"]
    assert 0.02 <= len(switched.rows) / len(texts) <= 0.12
    assert sum(detail.endswith("look like en") for detail in switched.detail) >= 0.8 * len(switched.rows)


def test_confidence_is_accuracy_at_every_length():
    """Every third hypothesis and its beginnings of some characters; expected calibration error over 10 bins."""
    draw = random.Random(1)
    texts, languages = [], []
    for language in LANGUAGES:
        for text in hypotheses(language, 15):
            cut = draw.randint(3, max(3, len(text)))
            texts += [text, text[:cut]]
            languages += [language] * 2
    found = Judged([texts])
    known = np.array([row is not None for row in found.features["language_0"]])
    right = (found.features["language_0"] == np.array(languages, object))[known]
    confidence = found.features["confidence_0"][known]
    sizes = np.array([len(identify.encoded(text)) for text in texts])[known]
    for low, high, most in ((0, 20, 0.06), (20, 60, 0.03), (60, 10_000, 0.01)):
        rows = (sizes >= low) & (sizes < high)
        bins = np.minimum((confidence[rows] * 10).astype(int), 9)
        gaps = [abs((right[rows] - confidence[rows])[bins == b].sum()) for b in range(10)]
        assert sum(gaps) / rows.sum() <= most, (low, sum(gaps) / rows.sum())


def test_a_text_costs_less_than_the_budget():
    texts, languages = labelled(hypotheses, 10)
    Judged([texts[:100]], [languages[:100]])
    seconds = []
    for _ in range(3):
        started = time.process_time()
        Judged([texts], [languages])
        seconds.append(time.process_time() - started)
    # Measured: 35 µs; the bound leaves room for busy machines.
    assert min(seconds) / len(texts) <= 130e-6
