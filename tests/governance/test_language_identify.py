"""The batched model: the numbers of py3langid, whatever is scored beside a text."""

import numpy as np
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from hybrid_kernels.governance import identify
from hybrid_kernels.governance.reading import read, read_together, wanted_of
from tests.governance.language_support import SENTENCES

TEXTS = [
    *SENTENCES.values(),
    "",
    "x",
    "¿",
    "1234",
    "ALL IN CAPITALS",
    "Ångström " * 40,
    "".join(chr(0x4E00 + i % 700) for i in range(900)),
]


@pytest.fixture(scope="module")
def reference():
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def scores(texts):
    parts = [walk.scores(walk.owner, walk.texts) for _, walk in identify.walks(texts)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def test_scores_are_those_of_the_library(reference):
    found, sizes = scores(TEXTS)
    expected = np.array([reference._raw_score(identify.encoded(text)) for text in TEXTS])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert sizes.tolist() == [len(text.encode()) for text in TEXTS]


def test_posteriors_are_those_of_the_library_at_its_own_temperature(reference, monkeypatch):
    monkeypatch.setattr(identify, "TEMPERATURE_SCALE", 1.0)
    monkeypatch.setattr(identify, "TEMPERATURE_EXPONENT", 0.5)
    found = identify.identify(TEXTS)
    languages = identify.model().languages
    for text, row in zip(TEXTS, found, strict=True):
        expected = dict.fromkeys(languages, 0.0)
        for label, probability in reference.rank(text):
            expected[identify._VARIETIES.get(label, label)] += probability
        np.testing.assert_allclose(row, [expected[name] for name in languages], rtol=2e-3, atol=1e-5)


def test_a_text_has_one_score_whatever_is_scored_beside_it(monkeypatch):
    together, _ = scores(TEXTS)
    alone = np.concatenate([scores([text])[0] for text in TEXTS])
    assert np.array_equal(together, alone)
    monkeypatch.setattr(identify, "_BLOCK_BYTES", 100)
    assert np.array_equal(scores(TEXTS)[0], together)
    monkeypatch.setattr(identify, "_LANE", 7)
    assert np.array_equal(scores(TEXTS)[0], together)


def test_of_a_very_long_text_beginning_middle_and_end_are_read():
    parts = [SENTENCES[code] * 200 for code in ("en", "sw", "de")]
    long = parts[0][:9000] + parts[1][:9000] + parts[2][:9000]
    data = identify.encoded(long).decode()
    assert len(data) <= identify.MAX_CHARACTERS + 2
    assert data.startswith(parts[0][:1000])
    assert parts[1][:9000][4000:5000] in data
    assert data.endswith(parts[2][:9000][-1000:])
    assert identify.encoded("x" * identify.MAX_CHARACTERS) == b"x" * identify.MAX_CHARACTERS


def test_spaced_apostrophes_do_not_make_walloon():
    for text in ("C' est pratique .", "Oui , c ' est ça .", "Il s' est rendu compte qu' il l' avait dit ."):
        assert identify.model().languages[identify.identify([text])[0].argmax()] == "fr"


def test_probabilities_sum_to_one_and_get_sharper_with_length():
    found = identify.identify([SENTENCES["es"][:n] for n in (2, 8, 16, 32, 60)])
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    confidence = found.max(1)
    assert confidence[0] < 0.7
    assert (np.diff(confidence) > -0.05).all() and confidence[-1] > 0.999


def test_nothing_says_nothing():
    assert identify.identify([]).shape == (0, len(identify.model().languages))
    assert identify.identify([""])[0].max() < 0.05


def test_two_texts_read_together_are_nearly_one_text():
    wanted = wanted_of(("en", "sw", "zh"))
    texts = [list(SENTENCES.values()), list(SENTENCES.values())[::-1]]
    sides = [read(column, [None] * len(column), wanted) for column in texts]
    joined = [f"{one}\n{other}" for one, other in zip(*texts, strict=True)]
    rows = np.arange(len(joined)) != 3
    expected = read(joined, [None] * len(joined), wanted)
    found = read_together(*sides, rows, [text for i, text in enumerate(joined) if rows[i]])
    a, b = (reading.posterior[reading.place][rows].argmax(1) for reading in (found, expected))
    assert (a == b).mean() >= 0.9
    assert found.total[3] == 0 and np.array_equal(found.total[rows], expected.total[rows])


def test_two_texts_read_together_have_the_prior_once():
    wanted = wanted_of(("en", "th"))
    first, second = read(["abc", "abc"], [None] * 2, wanted), read(["ไทย", ""], [None] * 2, wanted)
    found = read_together(first, second, np.array([True, True]), ["abc\nไทย", "abc\n"])
    evidence = scores(["abc", "ไทย"])[0] - identify.model().log_prior
    expected = [evidence.sum(0) + identify.model().log_prior, scores(["abc"])[0][0]]
    np.testing.assert_allclose(found.scores[found.place], expected, rtol=1e-5)
