"""Recall and precision on real text of fifteen languages with planted edits, and the families it has by itself."""

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hybrid_kernels.governance.text import normalise
from tests.governance.duplicates_support import instead, search, similarities

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "xnli").is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)"
)
LANGUAGES = ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
#: Similarities of planted pairs, by their lower ends; pairs below the first are not meant to be found.
BINS = (0.8, 0.82, 0.85, 0.9)


def xnli(language):
    lines = (DATA / "xnli" / f"dev-{language}.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    return [tuple(line.split("\t")[:2]) for line in lines]


def edited(text, letters, generator):
    """One to ten per cent of the characters replaced, put in or left out."""
    characters = list(text)
    for _ in range(max(1, round(len(text) * generator.uniform(0.01, 0.1)))):
        place = generator.randrange(len(characters))
        characters[place] = generator.choice(letters) * generator.randrange(2) + characters[
            place
        ] * generator.randrange(2)
    return "".join(characters)


@needs_data
def test_recall_and_precision_by_script_and_similarity(tmp_path):
    generator = random.Random(0)
    rows, languages, planted = [], [], {}
    for language in LANGUAGES:
        ntrex = (DATA / "ntrex" / f"ntrex.{language}.txt").read_text(encoding="utf-8").split("\n")[:-1:8]
        texts = [*ntrex, *(text for pair in xnli(language)[::12] for text in pair)]
        letters = sorted({character for text in texts for character in text if character.isalpha()})
        for text in texts:
            planted[len(rows) + 1] = len(rows)
            rows += [(text,), (edited(text, letters, generator),)]
            languages += [language] * 2
    found = search(tmp_path, rows, languages, shard=4096)
    stands = {row: row for row in range(len(rows))} | instead(found)

    meant, met = Counter(), Counter()
    for row, original in planted.items():
        similarity = similarities(rows[row], rows[original])[0]
        if similarity >= BINS[0]:
            together = stands[row] == stands[original]
            for key in (max(b for b in BINS if b <= similarity), languages[row]):
                meant[key] += 1
                met[key] += together
    recall = {key: met[key] / n for key, n in meant.items()}
    assert min(meant.values()) >= 100
    assert min(recall.values()) >= 0.98, recall
    for row, other, similarity, exact in zip(
        found.row.tolist(), found.linked_to.tolist(), found.similarity, found.exact, strict=True
    ):
        assert similarity == similarities(rows[row], rows[other])[0] >= 0.8
        assert languages[row] == languages[other]
        assert exact == (normalise(rows[row][0]) == normalise(rows[other][0]))
    edges = sum(len(np.load(path)) for path in (tmp_path / "found").glob("edges-*"))
    candidates = sum(len(np.load(path)) for path in (tmp_path / "found").glob("pairs-*"))
    assert edges > len(planted) / 4
    assert candidates < 20 * len(rows)


@needs_data
@pytest.mark.parametrize("language", ["en", "sw", "th", "zh"])
def test_every_hypothesis_of_a_premise_survives(tmp_path, language):
    """XNLI gives each premise three hypotheses, some a negation apart; one Chinese row is a true copy."""
    rows = xnli(language)
    found = search(tmp_path, rows, language, shard=4096)
    assert len({premise for premise, _ in rows}) < len(rows) / 2.9
    assert len(found) == (1 if language == "zh" else 0)
    for row, other in instead(found).items():
        assert rows[row] == rows[other]
