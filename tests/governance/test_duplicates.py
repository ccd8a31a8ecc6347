"""Near-duplicates: candidates, exact verification, representatives, and pairs that share a premise."""

import math
import random

import numpy as np
import pytest

from hybrid_kernels.governance import DuplicatePolicy, band_keys, find_duplicates, pair_similarity, shingles
from hybrid_kernels.governance.duplicates import exact_keys, rows_per_band

POLICY = DuplicatePolicy()
SENTENCE = "The old bridge over the river was closed for repairs until the end of spring."


def duplicates(rows, policy=POLICY, groups=None):
    columns = list(zip(*rows, strict=True))
    return find_duplicates(
        exact_keys(columns),
        band_keys(columns, policy),
        groups or ["en"] * len(rows),
        rows.__getitem__,
        policy,
    )


def found(rows, **options):
    return {d.row: d.duplicate_of for d in duplicates(rows, **options)}


def test_shingles_of_scripts_without_spaces():
    assert shingles("Ab, cd!", 3) == {"abc", "bcd"}
    assert shingles("渡轮取消了。", 3) == {"渡轮", "轮取", "取消", "消了"}
    assert shingles("ฝนตก", 3) == {"ฝนต", "นตก"}
    assert shingles("a", 3) == {"a"}


def test_exact_after_normalisation():
    rows = [(SENTENCE,), (f"  {SENTENCE.upper()} !! ",), ("Something else entirely was written here.",)]
    (duplicate,) = duplicates(rows)
    assert (duplicate.row, duplicate.duplicate_of, duplicate.similarity, duplicate.exact) == (1, 0, 1.0, True)


def test_symbols_and_marks_are_content():
    assert found([("5 < 7",), ("5 > 7",)]) == {}
    assert found([("मैं",), ("मे",)]) == {}


def test_near_duplicate_is_verified_exactly():
    edited = SENTENCE.replace("closed", "closes")
    (duplicate,) = duplicates([(SENTENCE,), (edited,)])
    a, b = shingles(SENTENCE, 3), shingles(edited, 3)
    assert duplicate.similarity == len(a & b) / len(a | b)
    assert duplicate.similarity >= POLICY.threshold
    assert not duplicate.exact
    assert found([(SENTENCE,), (edited,)], policy=DuplicatePolicy(threshold=0.95)) == {}


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("由于风太大，今天早上开往岛上的渡轮取消了，乘客都很失望。", "渡轮", "渡船"),
        ("เพราะลมแรงมาก เรือข้ามฟากไปเกาะเช้านี้จึงถูกยกเลิก ผู้โดยสารผิดหวัง", "เช้านี้", "เช้านั้น"),
    ],
)
def test_chinese_and_thai(text, old, new):
    assert old in text
    assert found([(text,), (text.replace(old, new),)]) == {1: 0}


def test_a_premise_with_several_hypotheses_is_kept():
    hypotheses = ["Kuna haki za kupiga kura.", "Hakuna haki za kupiga kura.", "Kura zinapigwa kila mwaka."]
    rows = [(SENTENCE, hypothesis) for hypothesis in hypotheses]
    assert shingles(hypotheses[0], 3) == shingles(hypotheses[1], 3)  # the trap: sets alone cannot tell
    assert found(rows) == {}
    assert found([*rows, rows[1]]) == {3: 1}


def test_a_hypothesis_with_several_premises_is_kept():
    rows = [(SENTENCE, "It is closed."), ("Nobody answered when we rang the bell twice.", "It is closed.")]
    assert found(rows) == {}


def test_every_column_must_reach_the_threshold():
    hypothesis, other = (
        "People could not cross the bridge in winter.",
        "A new bridge was opened to the public.",
    )
    edited = SENTENCE.replace("closed", "closes")
    assert found([(SENTENCE, hypothesis), (edited, hypothesis)]) == {1: 0}
    assert found([(SENTENCE, hypothesis), (edited, other)]) == {}


def test_first_row_represents_and_chains_do_not_merge():
    words = SENTENCE.split()
    chain = [SENTENCE]
    for i in (2, 6, 9, 13):
        words[i] = "grey"
        chain.append(" ".join(words))
    rows = [(text,) for text in chain]
    dropped = duplicates(rows)
    assert pair_similarity(rows[0], rows[4], POLICY)[0] < POLICY.threshold
    for duplicate in dropped:
        assert pair_similarity(rows[duplicate.row], rows[duplicate.duplicate_of], POLICY)[1]
        assert duplicate.duplicate_of not in {d.row for d in dropped}
    assert 0 not in {d.row for d in dropped}
    assert 0 < len(dropped) < 4


def test_exact_copy_of_a_near_duplicate_names_the_kept_row():
    edited = SENTENCE.replace("closed", "closes")
    assert found([(SENTENCE,), (edited,), (edited.upper(),)]) == {1: 0, 2: 0}


def test_languages_are_apart():
    assert found([(SENTENCE,), (SENTENCE,)], groups=["en", "fr"]) == {}


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_banding_finds_rows_at_the_threshold(columns, threshold):
    """Candidate recall on random pairs whose similarity is just the threshold in every column."""
    policy = DuplicatePolicy(threshold=threshold)
    generator = random.Random(0)

    def letters(n):
        return "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=n))

    # A common prefix with s of n shingles: J = s / (2n − s).
    n = 200
    prefix = math.ceil(2 * n * threshold / (1 + threshold)) + 2
    hits = trials = 0
    for _ in range(300):
        prefixes = [letters(prefix) for _ in range(columns)]
        pair = [[common + letters(n + 2 - prefix) for common in prefixes] for _ in range(2)]
        if threshold <= pair_similarity(*pair, policy)[0] < threshold + 0.02:
            keys = band_keys(list(zip(*pair, strict=True)), policy)
            trials += 1
            hits += bool((keys[0] == keys[1]).any())
    assert trials > 100
    assert hits / trials >= 0.98


def test_rows_per_band_follow_from_the_threshold():
    assert [rows_per_band(DuplicatePolicy(threshold=t), 1) for t in (0.5, 0.8, 0.9)] == [2, 6, 13]
    assert rows_per_band(DuplicatePolicy(threshold=0.8), 2) == 3
    assert found([(SENTENCE,), (SENTENCE + "!",)], policy=DuplicatePolicy(threshold=1.0)) == {1: 0}


def test_keys_depend_on_the_row_alone():
    rows = [(SENTENCE, "a b c"), ("Ganz etwas anderes steht hier geschrieben.", "d e f")]
    both = band_keys(list(zip(*rows, strict=True)), POLICY)
    assert both.dtype == np.uint64
    assert both.shape == (2, POLICY.bands)
    assert (band_keys([[SENTENCE], ["a b c"]], POLICY)[0] == both[0]).all()
