"""Shingles as integers, MinHash values, LSH keys."""

import math
import random

import numpy as np
import pytest

from hybrid_kernels.governance.duplicates import rows_per_band
from hybrid_kernels.governance.duplicates.shingles import ShingleSets, ideographic
from hybrid_kernels.governance.duplicates.signatures import families, minhash
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.text import normalise, shingles
from tests.governance.duplicates_support import SENTENCE, columns_of, policy, signed, similarities

# Scripts of one to four bytes, ideographs of both planes, a text of each length around a shingle's.
PIECES = [
    "",
    "a",
    "ab",
    "abc",
    "aaaa",
    "渡",
    "渡轮",
    "渡轮取消了",
    "𠀀𠀁𠀂𠀀𠀁",
    "ab渡",
    "渡轮a",
    "ฝนตกหนัก",
    "मैं यहाँ हूँ",
    "🙂🙂",
    "привет",
]


def texts_of(generator, count):
    return [normalise("".join(generator.choices(PIECES, k=generator.randint(0, 6)))) for _ in range(count)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 12])
def test_sets_are_those_of_strings(size):
    """For any mix of scripts and any size, also where a shingle needs more than 64 bits."""
    texts = [*PIECES, SENTENCE, *texts_of(random.Random(size), 60)]
    texts = [normalise(text) for text in texts]
    truth = [shingles(text, size) for text in texts]
    sets = ShingleSets(texts, size)
    assert sets.sizes.tolist() == [len(s) for s in truth]
    left, right = (part.ravel() for part in np.indices((len(texts), len(texts))))
    similarity = [len(a & b) / len(a | b) for a in truth for b in truth]
    assert sets.similarity(left, right).tolist() == similarity
    assert 0 < sets.ideographic.sum() < len(texts)


def test_sets_of_no_texts():
    nothing = np.zeros(0, np.int64)
    assert ShingleSets([], 3).similarity(nothing, nothing).tolist() == []
    assert ShingleSets(["", "a"], 3).similarity(np.array([0, 0]), np.array([0, 1])).tolist() == [1.0, 0.0]


def test_ideographs_dominate_by_more_than_half():
    assert ideographic(["渡轮ab", "渡轮a", "ab", "", "カナ渡", "渡"]).tolist() == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_minhash_estimates_the_similarity_of_the_sets(size):
    """Equal sets have equal values, and the share of equal values is the Jaccard similarity, within four deviations."""
    generator = random.Random(0)
    texts = [text for text in texts_of(generator, 40) if text]
    texts += [
        normalise(SENTENCE),
        normalise(SENTENCE.replace("closed", "closes")),
        normalise("渡轮取消了" * 9),
    ]
    length = 400
    values = minhash(texts, size, length, seed=1)
    assert values.dtype == np.uint32
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            left, right = shingles(a, size), shingles(b, size)
            truth = len(left & right) / len(left | right)
            # A short text is filled up to the width of its script's shingles.
            if min(len(a), len(b)) < size:
                continue
            estimate = (values[i] == values[j]).mean()
            assert abs(estimate - truth) <= 4 * math.sqrt(truth * (1 - truth) / length) + 1e-3
    assert not (values == minhash(texts, size, length, seed=2)).all()


def test_minhash_does_not_depend_on_the_texts_beside(monkeypatch):
    texts = [normalise(text) for text in [*PIECES, SENTENCE]] * 3
    whole = minhash(texts, 3, 24, seed=0)
    monkeypatch.setattr("hybrid_kernels.governance.duplicates.signatures._BLOCK", 7)
    assert (minhash(texts, 3, 24, seed=0) == whole).all()
    assert (minhash([texts[5]], 3, 24, seed=0) == whole[5]).all()


def test_rows_per_band_follow_from_the_threshold():
    assert [rows_per_band(threshold, 20, 1) for threshold in (0.5, 0.8, 0.9)] == [2, 6, 13]
    assert rows_per_band(0.8, 20, 2) == 3
    assert [rows_per_band(threshold, 20, 1) for threshold in (0.99, 1.0)] == [16, 16]
    assert rows_per_band(0.1, 1, 2) == 1


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_banding_finds_rows_at_the_threshold(width, threshold):
    """Candidate recall on random pairs whose similarity is just the threshold in every column."""
    rules = policy(duplicates={"threshold": threshold})
    generator = random.Random(0)

    def letters(n):
        return "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=n))

    # A common prefix with s of n shingles: J = s / (2n − s).
    n = 200
    prefix = math.ceil(2 * n * threshold / (1 + threshold)) + 2
    pairs = []
    for _ in range(300):
        prefixes = [letters(prefix) for _ in range(width)]
        pair = [tuple(common + letters(n + 2 - prefix) for common in prefixes) for _ in range(2)]
        if threshold <= min(similarities(*pair)) and max(similarities(*pair)) < threshold + 0.02:
            pairs.append(pair)
    assert len(pairs) > 100
    table = signed([row for pair in pairs for row in pair], rules=rules)
    (family,) = families(columns_of(pairs[0]), rules, leakage=False)
    keys = np.stack([table[family.keys(band)].to_numpy() for band in range(family.bands)], axis=1)
    assert (keys[::2] == keys[1::2]).any(axis=1).mean() >= 0.98


def test_a_signature_depends_on_the_row_its_languages_and_the_seed():
    rows = [(SENTENCE, "a b c"), ("Ganz etwas anderes steht hier geschrieben.", "d e f")]
    both = signed(rows)
    assert signed(rows[:1]).equals(both.slice(0, 1))
    french, seeded = signed(rows, "fr"), signed(rows, rules=policy(seed=1))
    for name in ("row_0", "row_19"):
        for other in (french, seeded):
            assert set(both[name].to_pylist()).isdisjoint(other[name].to_pylist())
    assert both["hash"][0] != french["hash"][0]
    assert both["hash"].equals(seeded["hash"])
    moved = signed([("ab", "c"), ("a", "bc")])
    assert moved["hash"][0] != moved["hash"][1]


def test_a_row_without_a_text_signs_as_null():
    table = signed([(SENTENCE, "a"), (None, "b"), (SENTENCE, None)], leakage=True, translation=True)
    for column in table.columns:
        assert column.is_null().to_pylist() == [False, True, True]
    assert signed([(SENTENCE, "a")]).slice(1).num_rows == 0


@pytest.mark.parametrize(
    ("rows", "sections", "translation", "names"),
    [
        ((SENTENCE,), {}, False, {"row": 6}),
        ((SENTENCE,), {"leakage": {"threshold": 0.9}}, False, {"row": 6, "leakage": 13}),
        ((SENTENCE, "a"), {}, False, {"row": 3}),
        ((SENTENCE, "a"), {}, True, {"row": 3, "text_0": 6, "text_1": 6}),
        ((SENTENCE, "a"), {"leakage": {"match": "all"}}, True, {"row": 3}),
        ((SENTENCE, "a"), {"duplicates": {"near": False}}, False, {"leakage": 3}),
        ((SENTENCE, "a"), {"leakage": {"enabled": False}, "duplicates": {"enabled": False}}, False, {}),
    ],
)
def test_families_of_keys(rows, sections, translation, names):
    wanted = families(
        columns_of([rows], translation), GovernancePolicy.model_validate(sections), leakage=True
    )
    assert {family.name: family.rows for family in wanted} == names
