"""Rows that their writers romanised."""

import numpy as np
import pytest

from hybrid_kernels.evaluation.robustness import natural_romanised, romanised_metrics
from tests.evaluation.robustness.support import DATA

XNLI = DATA / "xnli"

ROWS = [
    ("ur", "Mein ne koi galti ke baghar kar diya.", True),
    ("hi", "Mujhe lagta hai ki wo ghar pahuch gaya", True),
    ("ur", "Henry Kissinger rayasat k behtreen sectretary tha.", True),
    ("ur", "اسنی اپنی امی کو بتایا", False),
    ("hi", "The public are banned from commenting.", False),
    ("th", "Wolverstone และ Colonel Bishop เป็นเพื่อนสนิทกัน", False),
    ("zh", "Computer City位于Star House。", False),
    ("sw", "Alimwambia mama yake alikuwa amefika nyumbani.", False),
    ("hi-Latn", "Wo bahut zyada shahari tha", False),
    ("ur", "1999", False),
]


def test_by_hand():
    rows = [{"language": language, "hypothesis": text} for language, text, _ in ROWS]
    assert natural_romanised(rows).tolist() == [expected for _, _, expected in ROWS]
    renamed = [{"language": row["language"], "premise": row["hypothesis"]} for row in rows]
    assert natural_romanised(renamed, "premise").tolist() == [expected for _, _, expected in ROWS]
    assert natural_romanised([]).shape == (0,)


@pytest.mark.skipif(not XNLI.is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)")
def test_xnli():
    counts = {}
    for language in ("ar", "bg", "el", "hi", "ru", "th", "ur", "zh", "en", "sw"):
        lines = (XNLI / f"dev-{language}.tsv").read_text(encoding="utf-8").splitlines()
        rows = [{"language": language, "hypothesis": line.split("\t")[1]} for line in lines]
        found = natural_romanised(rows)
        counts[language] = int(found.sum())
        if language in ("hi", "ur"):
            english = (XNLI / "dev-en.tsv").read_text(encoding="utf-8").splitlines()
            # Hypotheses left in English are none: word for word the English ones, here.
            left = [a.split("\t")[1] == b.split("\t")[1] for a, b in zip(lines, english, strict=True)]
            assert sum(left) >= 2 and not found[left].any()
    # Read one by one: these are all of Urdu's and Hindi's that is in Latin letters alone and is not English.
    assert counts == {**dict.fromkeys(counts, 0), "hi": 66, "ur": 173}


def test_metrics():
    right, wrong = [0.9, 0.1], [0.2, 0.8]
    p = np.array([right] * 8 + [wrong] * 2 + [right, wrong, wrong, wrong] + [right] * 3)
    languages = ["ur"] * 14 + ["en"] * 3
    romanised = np.array([False] * 10 + [True] * 4 + [False] * 3)
    table = romanised_metrics(p, np.zeros(17, int), languages, romanised)
    assert set(table) == {"ur"}
    assert table["ur"]["native"]["accuracy"] == 0.8 and table["ur"]["native"]["n"] == 10
    assert table["ur"]["romanised"]["accuracy"] == 0.25 and table["ur"]["romanised"]["n"] == 4
    assert table["ur"]["accuracy_drop"] == pytest.approx(0.55)


def test_interval_of_newcombe():
    """His table II, example (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339."""
    p = np.tile([0.9, 0.1], (150, 1))
    labels = np.array([0] * 56 + [1] * 14 + [0] * 48 + [1] * 32)
    romanised = np.arange(150) >= 70
    found = romanised_metrics(p, labels, ["hi"] * 150, romanised)["hi"]["interval"]
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"rows\[1\] has no text in 'hypothesis'"):
        natural_romanised([{"language": "ur", "hypothesis": "a"}, {"language": "ur", "hypothesis": None}])
    with pytest.raises(ValueError, match="language 'xx'"):
        natural_romanised([{"language": "xx", "hypothesis": "a"}])
    with pytest.raises(ValueError, match="romanised is int64"):
        romanised_metrics(np.ones((1, 1)), [0], ["ur"], np.array([1]))
