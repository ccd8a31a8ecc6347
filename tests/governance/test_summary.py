"""Tallies: what they count, and that shards can be merged in any order."""

import json
import pickle
from itertools import permutations

import numpy as np
import pytest

from hybrid_kernels.evaluation.results import Governance
from hybrid_kernels.governance.batch import Batch, Columns, Objection
from hybrid_kernels.governance.summary import EXAMPLES, EXCERPT, Other, Tally


def batch(texts, languages=("en", "sw")):
    return Batch((list(texts),), ([None] * len(texts),), Columns(("text",)), tuple(languages))


def objection(step, reason, rows, *, rejects=True, column="text", score=0.9, bound=0.5):
    rows = np.array(rows, np.int64)
    detail = [f"{reason} at {row}" for row in rows]
    return Objection(
        step, reason, column, rows, np.full(len(rows), score), np.full(len(rows), bound), detail, rejects
    )


def shard(first, count, *objections, languages=None, source="a.jsonl", others=None):
    tally = Tally()
    texts = [f"row {first + i}" for i in range(count)]
    kept = tally.add(
        batch(texts), objections, languages or ["en"] * count, source=source, first=first, others=others
    )
    return tally, kept


def test_a_row_counts_for_the_first_step_that_objects_and_for_each_of_its_reasons():
    tally, kept = shard(
        0,
        6,
        objection("language", "another language", [1, 2]),
        objection("quality", "too short", [0, 1]),
        objection("quality", "too many digits", [1]),
    )
    assert kept.tolist() == [False, False, False, True, True, True]
    summary = tally.to_json()
    assert (summary["rows"], summary["kept"], summary["rejected"]) == (6, 3, 3)
    assert list(summary["by_step"]) == ["quality", "language"]
    assert summary["by_step"]["quality"] == {
        "rejected": 2,
        "objected": 2,
        "reasons": {"too short": 2, "too many digits": 1},
        "alone": {"too short": 1},
    }
    assert summary["by_step"]["language"] == {
        "rejected": 1,
        "objected": 2,
        "reasons": {"another language": 2},
        "alone": {"another language": 1},
    }


def test_both_columns_of_a_row_are_one_row():
    tally, _ = shard(
        0,
        3,
        objection("quality", "too short", [0, 1]),
        objection("quality", "too short", [1], column="other"),
    )
    assert tally.to_json()["by_step"]["quality"]["reasons"] == {"too short": 2}
    assert tally.to_json()["by_step"]["quality"]["alone"] == {"too short": 2}
    assert [example["row"] for example in tally.to_json()["examples"]["quality"]] == [0, 1]


def test_languages_and_sources_are_counted_apart():
    tally, _ = shard(
        0, 4, objection("quality", "too short", [0, 1, 2]), languages=["en", "sw", None, "sw"], source="a"
    )
    tally.merge(shard(4, 2, objection("language", "foreign", [1]), languages=["sw", "2 kg"], source="b")[0])
    summary = tally.to_json(["en", "sw", "ur"], ["duplicates"])
    assert summary["by_language"]["sw"] == {
        "rows": 3,
        "kept": 2,
        "rejected": 1,
        "flagged": 0,
        "by_step": {"quality": 1},
    }
    assert summary["by_language"]["und"]["rejected"] == 1
    assert summary["by_language"]["not a language code"]["by_step"] == {"language": 1}
    assert summary["by_language"]["ur"]["rows"] == 0
    assert {name: part["kept"] for name, part in summary["by_source"].items()} == {"a": 1, "b": 1}
    assert summary["by_step"]["duplicates"]["rejected"] == 0


def test_whatever_a_column_claims_the_tally_stays_small():
    tally, _ = shard(0, 500, languages=[f"claim {i}" for i in range(500)])
    assert list(tally.languages) == ["not a language code"]


def test_flags_are_of_kept_rows():
    tally, kept = shard(
        0,
        4,
        objection("language", "code-switched", [0, 1, 2], rejects=False),
        objection("quality", "too short", [0]),
    )
    summary = tally.to_json()
    assert kept.tolist() == [False, True, True, True]
    assert summary["flagged"] == summary["by_language"]["en"]["flagged"] == 2
    assert summary["flags"] == {"language": {"code-switched": 2}}
    assert [example["row"] for example in summary["flag_examples"]["language"]] == [1, 2]
    assert summary["by_step"]["language"]["reasons"] == {}


def test_shards_merge_in_any_order():
    parts = [
        shard(10 * i, 10, objection("quality", "too short", [1, 3, 5, 9]), languages=["en", "sw"] * 5)[0]
        for i in range(3)
    ]
    for i in (0, 1):
        flag = objection("language", "code-switched", [0, 1], rejects=False)
        parts[i].merge(shard(30 + 10 * i, 2, flag)[0])
    parts[1].add_groups([2, 2, 5])
    parts[2].add_groups([2])
    parts[0].add_cost("quality", 10, 1.0)
    parts[2].add_cost("quality", 10, 1.0)
    found = []
    for order in permutations(pickle.dumps(part) for part in parts):
        total = Tally()
        for part in order:
            total.merge(pickle.loads(part))
        found.append(json.dumps(total.to_json(), sort_keys=True))
    assert len(set(found)) == 1
    summary = json.loads(found[0])
    assert [example["row"] for example in summary["examples"]["quality"]] == [1, 3, 5, 9, 11]
    assert summary["flags"] == {"language": {"code-switched": 4}}
    assert summary["duplicate_groups"] == {"2": 3, "5": 1}
    assert summary["cost"] == {"quality": {"rows": 20, "seconds": 2.0, "rows_per_second": 10.0}}


def test_examples_are_few_and_short_however_many_rows():
    tally = Tally()
    for first in range(0, 4000, 1000):
        long = batch(["x " * 10_000] * 1000)
        found = objection("quality", "too long", range(1000))
        tally.add(long, [found], ["en"] * 1000, source="a", first=first)
    assert len(pickle.dumps(tally)) < 10_000
    examples = tally.to_json()["examples"]["quality"]
    assert len(examples) == EXAMPLES
    assert all(len(example["text"]) == EXCERPT and example["text"].endswith("…") for example in examples)


def test_an_example_says_what_decided_and_which_row_the_other_is():
    other = Other("test.jsonl", 7, ("the very row",), "t-7")
    tally, _ = shard(
        100, 3, objection("leakage", "leaked from evaluation", [2], score=0.93), others={2: other, 1: other}
    )
    summary = tally.to_json()
    assert summary["leakage"] == {"test.jsonl": 1}
    (example,) = summary["examples"]["leakage"]
    assert example["row"] == example["record"] == 102
    assert (example["score"], example["bound"]) == (0.93, 0.5)
    assert example["detail"] == "leaked from evaluation at 2"
    assert example["other"] == {
        "source": "test.jsonl",
        "record": 7,
        "texts": ("the very row",),
        "id": "t-7",
    }


def test_scores_that_are_none_are_null():
    tally, _ = shard(0, 1, objection("input", "malformed", [0], column=None, score=np.nan, bound=-np.inf))
    (example,) = tally.to_json()["examples"]["input"]
    assert example["score"] is None and example["bound"] is None
    json.dumps(tally.to_json(), allow_nan=False)


def test_the_study_reads_the_summary():
    tally, _ = shard(0, 3, objection("quality", "too short", [0]), languages=["en", None, "sw"])
    read = Governance.model_validate(json.loads(json.dumps(tally.to_json(["en", "sw"]))))
    assert read.by_step["quality"].reasons == {"too short": 1}
    assert read.examples["quality"][0].text == "row 0"


def test_an_unknown_step_is_an_error():
    with pytest.raises(ValueError, match=r"a step is one of input, quality.*got 'speling'"):
        shard(0, 1, objection("speling", "wrong", [0]))
