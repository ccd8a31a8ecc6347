"""What another threshold would do: the counts are those of a run under that policy."""

import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from hybrid_kernels.governance import what_if
from hybrid_kernels.governance.batch import Batch, Columns, Objection, Range
from hybrid_kernels.governance.policy import GovernancePolicy, QualityPolicy
from hybrid_kernels.governance.steps import Rows, Shard, make_job
from hybrid_kernels.governance.storage import row_schema, write_table


@dataclass
class Rule:
    """Rows whose feature lies above a field of the policy, or above a bound from the data."""

    step: str
    feature: str
    option: str
    calls: ClassVar[list] = []

    def objections(self, batch, features, policy, bounds):
        self.calls.append(self.step)
        section = getattr(policy, self.step)
        high = min(getattr(section, self.option), bounds.get((self.feature, None), Range()).high)
        rows = np.flatnonzero(features[self.feature] > high)
        none = np.full(len(rows), np.nan)
        return [Objection(self.step, self.option, None, rows, none, none, ["why"] * len(rows))]


QUALITY = Rule("quality", "digits", "max_digits")
LANGUAGE = Rule("language", "foreign", "min_rival")
POLICY = GovernancePolicy()
LANGUAGES = ["en", "sw"] * 5
FEATURES = {"digits": np.arange(10) / 10, "foreign": np.array([0.0, 0.9] + [0.0] * 8)}


def batch(rows=10):
    return Batch((["x"] * rows,), ([None] * rows,), Columns(("text",)), ("en", "sw"))


def judged(variations, *, bounds=lambda policy: {}, parts=1, policy=POLICY):
    others = what_if.alternatives(policy, variations, bounds)
    steps = {"quality": QUALITY, "language": LANGUAGE}
    found = what_if.WhatIf()
    for part in np.array_split(np.arange(10), parts):
        features = {name: values[part] for name, values in FEATURES.items()}
        one = what_if.judge(
            batch(len(part)),
            features,
            [LANGUAGES[i] for i in part],
            [],
            steps,
            policy,
            bounds(policy),
            others,
        )
        found.merge(pickle.loads(pickle.dumps(one)))
    return what_if.table(found, others, policy, 10), others


def line(table, field, value):
    return next(one for one in table["lines"] if (one["field"], one["value"]) == (field, value))


def test_each_value_is_judged_as_a_run_with_it_would():
    table, _ = judged({"quality": {"max_digits": [0.5, 0.2, 0.8]}})
    # In force: rows 6 to 9 have too many digits, row 1 is foreign.
    assert table["rejected"] == 5
    assert [one["value"] for one in table["lines"]] == [0.2, 0.5, 0.8]
    assert line(table, "quality.max_digits", 0.5)["in_force"]
    strict = line(table, "quality.max_digits", 0.2)
    assert (strict["rejected"], strict["newly_rejected"], strict["newly_kept"]) == (8, 3, 0)
    assert strict["reasons"] == {"quality: max_digits": {"rows": 7, "alone": 7}}
    assert strict["worst"] == {"language": "sw", "rows": 2, "change": 0.4}
    loose = line(table, "quality.max_digits", 0.8)
    assert (loose["rejected"], loose["newly_rejected"], loose["newly_kept"]) == (2, 0, 3)
    assert loose["worst"] == {"language": "en", "rows": 2, "change": -0.4}


def test_a_row_that_another_rule_rejects_is_not_rejected_alone():
    table, _ = judged({"quality": {"max_digits": [0.05]}})
    found = line(table, "quality.max_digits", 0.05)
    assert found["reasons"] == {"quality: max_digits": {"rows": 9, "alone": 8}}
    assert (found["rejected"], found["newly_rejected"]) == (9, 4)


def test_shards_add_up():
    variations = {"quality": {"max_digits": [0.2, 0.8]}, "language": {"min_rival": [0.95]}}
    whole, parted = judged(variations)[0], judged(variations, parts=4)[0]
    assert parted["rows"] == parted["of_rows"] == 10
    assert whole["lines"] == parted["lines"]


def test_the_bounds_are_those_of_the_other_policy():
    def bounds(policy):
        return {("digits", None): Range(high=policy.thresholds.spread / 10)}

    table, _ = judged({"thresholds": {"spread": [4.0, 1.0]}}, bounds=bounds)
    assert line(table, "thresholds.spread", 8.0)["rejected"] == 5  # the policy's bound is the stricter one
    assert line(table, "thresholds.spread", 4.0)["rejected"] == 6
    assert line(table, "thresholds.spread", 1.0)["rejected"] == 9
    assert list(line(table, "thresholds.spread", 1.0)["reasons"]) == ["quality: max_digits"]


def test_only_the_step_of_the_section_judges_again():
    Rule.calls.clear()
    judged({"quality": {"max_digits": [0.2, 0.8]}})
    assert sorted(Rule.calls) == ["language"] + 3 * ["quality"]


def test_a_field_that_makes_no_difference_has_no_reasons():
    table, _ = judged({"language": {"min_script": [0.1, 0.3]}})
    assert all(one["reasons"] == {} and one["worst"] is None for one in table["lines"])


def test_what_is_off_is_not_tried_and_what_is_not_possible_is_an_error():
    off = GovernancePolicy(quality=QualityPolicy(enabled=False))
    assert what_if.alternatives(off, {"quality": {"max_digits": [0.2]}}, lambda policy: {}) == []
    with pytest.raises(ValueError, match="max_digits"):
        what_if.alternatives(POLICY, {"quality": {"max_digits": [2.0]}}, lambda policy: {})


@pytest.mark.parametrize(
    "rows", [[5], [4096, 4096], [5, 8192, 8192], [8192] * 64, [8192] * 65, [8192] * 700 + [3]], ids=len
)
def test_the_sample_is_spread_over_all_rows(rows):
    chosen, total = what_if.sample(rows)
    assert len(chosen) == min(len(rows), what_if.MAX_SHARDS)
    assert max(np.diff([*chosen, len(rows)])) <= -(-len(rows) // what_if.MAX_SHARDS)
    assert total == sum(rows[i] for i in chosen)
    starts = np.cumsum([0, *rows])
    found = np.concatenate([starts[i] + what_if._chosen(int(starts[i]), rows[i], total) for i in chosen])
    assert abs(len(found) - min(total, what_if.MAX_ROWS)) <= len(chosen)
    within = np.diff(found)[np.diff(found) < 8192]
    assert within.max() <= -(-total // what_if.MAX_ROWS) and np.diff(found).min() > 0


def test_no_shards_are_no_sample():
    assert what_if.sample([]) == ([], 0)


def test_duplicates_at_each_threshold_are_groups_less_one_row():
    # 4 and 9 repeat 1; 9 is linked to 4. 21 repeats 20.
    row, linked_to = np.array([4, 9, 21]), np.array([1, 4, 20])
    similarity = np.array([0.95, 0.84, 1.0])
    lines = what_if.duplicate_lines(row, linked_to, similarity, [0.7, 0.9, 0.97], 0.8)
    assert [(one["threshold"], one["at_least"], one["at_most"]) for one in lines] == [
        (0.8, 3, 3),
        (0.9, 2, 2),
        (0.97, 1, 1),
    ]
    assert [one["in_force"] for one in lines] == [True, False, False]


def test_rows_linked_to_each_other_may_lose_their_group():
    # 2 and 3 are most similar to each other, and in the group of 1 by a pair of 0.85 that is no link.
    lines = what_if.duplicate_lines(np.array([2, 3]), np.array([3, 2]), np.array([0.95, 0.95]), [0.9], 0.8)
    assert [(one["at_least"], one["at_most"]) for one in lines] == [(2, 2), (1, 2)]


def test_no_duplicates_are_no_rows_at_any_threshold():
    none = np.array([], np.int64)
    lines = what_if.duplicate_lines(none, none, np.array([]), [0.9], 0.8)
    assert [(one["at_least"], one["at_most"]) for one in lines] == [(0, 0), (0, 0)]


def test_a_shard_is_judged_from_its_files_at_even_distances_over_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(what_if, "MAX_ROWS", 4)
    texts = ["Ninapenda kusoma vitabu vya historia kila jioni nyumbani."] * 13
    texts[5] = texts[6] = "I would like to read a few more books about history in the evening."
    texts[9] = None
    policy = GovernancePolicy(quality=QualityPolicy(enabled=False))
    job = make_job(tmp_path, Columns(("text",), ("=sw",)), ["en", "sw"], policy, None)
    found = what_if.WhatIf()
    for part, first, rows in (("a.arrow", 0, 5), ("b.arrow", 5, 8)):
        shard = Shard(part, 0, False, rows, first)
        here = texts[first : first + rows]
        problems = [None if text else "no text: missing" for text in here]
        columns = [range(rows), [None] * rows, problems, here, ["sw"] * rows]
        arrays = [
            pa.array(column, kind.type) for column, kind in zip(columns, row_schema(job.columns), strict=True)
        ]
        write_table(pa.table(arrays, schema=row_schema(job.columns)), job.rows(shard))
        for step in job.steps:
            Rows(job, shard).measure(step)
        found.merge(what_if._judge(what_if._Task(job, shard, 13, {}, [])))
    assert found.rows == {"sw": 4}  # 3, 6, 9 and 12
    assert {step: number for (step, _), number in found.in_force.reasons.items()} == {
        "input": 1,
        "language": 1,
    }
