"""The stages: what is there is not computed again, what depends on a change is."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.engine import InProcess, LocalEngine
from hybrid_kernels.governance.pipeline import Pipeline
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.steps import Step, make_job
from hybrid_kernels.governance.storage import read_table, row_schema

COLUMNS = Columns(("text",), id="id")
STEPS = (Step("quality", "quality", "tests.governance.counting_step"),)


class ListSource:
    """Texts in batches of ten; each batch that is read is noted. Text None: a malformed record."""

    evaluation, format = False, "list"

    def __init__(self, texts, name="list", fail_at=None):
        self.texts, self.name, self.output_name, self.fail_at = texts, name, name, fail_at

    def fingerprint(self):
        return {"name": self.name, "texts": self.texts}

    def batches(self, start=None):
        for first in range(0 if start is None else start["record"], len(self.texts), 10):
            if self.fail_at is not None and first >= self.fail_at:
                raise OSError("unplugged")
            with open(os.environ["COUNTING_LOG"], "a") as file:  # noqa: PTH123
                file.write(f"read {first}\n")
            texts = self.texts[first : first + 10]
            records = range(first, first + len(texts))
            problems = ["line is no JSON" if text is None else None for text in texts]
            ids = [f"{self.name}-{record}" for record in records]
            columns = [list(records), ids, problems, texts, [None] * len(texts)]
            schema = row_schema(COLUMNS)
            arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
            yield pa.table(arrays, schema=schema), {"record": records[-1] + 1}


@pytest.fixture
def log(tmp_path, monkeypatch):
    """What was computed since the last call, sorted."""
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("COUNTING_LOG", str(path))

    def taken():
        lines = path.read_text().splitlines()
        path.write_text("")
        return sorted(line.split()[0] for line in lines)

    read_table.cache_clear()
    yield taken
    read_table.cache_clear()


def policy(**quality):
    off = {"enabled": False}
    return GovernancePolicy.model_validate(
        {"quality": quality, "language": off, "duplicates": off, "leakage": off}
    )


def run(work, sources, engine=None, revision=1, **quality):
    job = make_job(work, COLUMNS, ["en"], policy(**quality), revision, STEPS)
    return Pipeline(sources, job, engine or InProcess(), revision).run()


TEXTS = ["word" * (1 + i % 4) for i in range(35)]


def kept(judgement):
    return np.flatnonzero(judgement.kept).tolist()


def test_rows_are_judged_and_malformed_ones_rejected(tmp_path, log):
    texts = [*TEXTS[:5], None, *TEXTS[6:]]
    judgement = run(tmp_path / "work", [ListSource(texts)], min_letters=5)
    assert kept(judgement) == [i for i in range(35) if i % 4 and i != 5]
    summary = judgement.tally.to_json()
    assert (summary["rows"], summary["kept"], summary["rejected"]) == (35, 25, 10)
    assert summary["by_step"]["input"]["reasons"] == {"malformed": 1}
    assert summary["by_step"]["quality"]["reasons"] == {"too short": 9}
    verdict, _ = judgement.decisions.of(judgement.shards[0])
    (reason,) = verdict.reasons()[5]
    assert (reason[0].step, reason[0].detail) == ("input", ["line is no JSON"])
    assert log() == ["judge"] * 4 + ["measure"] * 4 + ["read"] * 4


def test_nothing_is_computed_twice(tmp_path, log):
    first = run(tmp_path / "work", [ListSource(TEXTS)])
    log()
    second = run(tmp_path / "work", [ListSource(TEXTS)])
    assert log() == []
    assert kept(second) == kept(first)
    assert second.stages["read and measure"]["rows"] == second.stages["judge"]["rows"] == 0
    assert {s: c["rows"] for s, c in second.tally.to_json()["cost"].items()} == {
        s: c["rows"] for s, c in first.tally.to_json()["cost"].items()
    }


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"min_letters": 9}, ["judge"] * 4),
        ({"min_shingles": 7}, ["judge"] * 4 + ["measure"] * 4),
        ({"revision": 2}, ["judge"] * 4 + ["measure"] * 4 + ["read"] * 4),
    ],
)
def test_a_change_computes_what_depends_on_it(tmp_path, log, change, computed):
    run(tmp_path / "work", [ListSource(TEXTS)])
    log()
    changed = run(tmp_path / "work", [ListSource(TEXTS)], **change)
    assert log() == computed
    assert kept(changed) == kept(run(tmp_path / "other", [ListSource(TEXTS)], **change))


def test_another_source_leaves_the_first_as_it_is(tmp_path, log):
    run(tmp_path / "work", [ListSource(TEXTS)])
    log()
    both = run(tmp_path / "work", [ListSource(TEXTS[:3], "new"), ListSource(TEXTS)])
    assert log() == ["judge", "measure", "read"]
    assert [shard.first for shard in both.shards] == [0, 3, 13, 23, 33]
    assert both.kept_of(0).tolist() == [True] * 3 and len(both.kept_of(1)) == 35


def test_reading_goes_on_where_it_broke_off(tmp_path, log):
    with pytest.raises(OSError, match="unplugged"):
        run(tmp_path / "work", [ListSource(TEXTS, fail_at=20)])
    assert log().count("read") == 2
    resumed = run(tmp_path / "work", [ListSource(TEXTS)])
    assert log() == ["judge"] * 4 + ["measure"] * 2 + ["read"] * 2
    assert [shard.rows for shard in resumed.shards] == [10, 10, 10, 5]


def test_worker_processes_decide_the_same(tmp_path, log):
    engine = LocalEngine(2)
    texts = [*TEXTS, None] * 3
    found = run(tmp_path / "many", [ListSource(texts)], engine, min_letters=5)
    engine.close()
    alone = run(tmp_path / "one", [ListSource(texts)], min_letters=5)
    assert kept(found) == kept(alone)
    one, other = (dict(j.tally.to_json(), cost=None) for j in (found, alone))
    assert json.dumps(one) == json.dumps(other)


def test_no_rows_is_an_error_that_names_the_source(tmp_path, log):
    with pytest.raises(ValueError, match="there are no rows in empty"):
        run(tmp_path / "work", [ListSource([], "empty")])


def test_a_step_must_measure_its_fields(tmp_path, log, monkeypatch):
    monkeypatch.setattr("tests.governance.counting_step.measure", lambda batch, policy: {})
    with pytest.raises(RuntimeError, match=r"quality has \[\] measured, its fields are \['letters_0'\]"):
        run(tmp_path / "work", [ListSource(TEXTS)])


def test_a_step_is_checked_before_anything_is_read(tmp_path, log, monkeypatch):
    def check(policy):
        raise ValueError("no such model")

    monkeypatch.setattr("tests.governance.counting_step.check", check, raising=False)
    with pytest.raises(ValueError, match="no such model"):
        run(tmp_path / "work", [ListSource(TEXTS)])
    assert log() == []
