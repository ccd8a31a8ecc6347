"""The search as tasks: any number of them, in any order, resumed; buckets of any size; bad arguments."""

import pickle
import random

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from hybrid_kernels.governance.duplicates import candidates, find, run, verify
from hybrid_kernels.governance.duplicates.candidates import Band, pack, unpack
from hybrid_kernels.governance.duplicates.files import TRAINING, Search, write_array
from hybrid_kernels.governance.duplicates.groups import representatives
from hybrid_kernels.governance.duplicates.signatures import Family
from hybrid_kernels.governance.engine import InProcess
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.storage import RowStore, write_table
from tests.governance.duplicates_support import SENTENCE, columns_of, instead, policy, prepare, search


class Backwards:
    """The last task first, each through pickle, as another process would get it."""

    workers = 2

    def __init__(self, stop_after=None):
        self.ran, self.stop_after = [], stop_after

    def map(self, function, tasks, description):
        for number in reversed(range(len(tasks))):
            if len(self.ran) == self.stop_after:
                raise KeyboardInterrupt
            function, task = pickle.loads(pickle.dumps((function, tasks[number])))
            self.ran.append(task.path.name)
            yield number, function(task)


def rows_of(seed=0, count=60):
    generator = random.Random(seed)
    words = SENTENCE.split()
    rows = []
    for _ in range(count):
        chosen = [
            w if generator.random() < 0.93 else generator.choice(["grey", "far", "onto"]) for w in words
        ]
        rows.append((" ".join(chosen),))
    return rows


def as_lists(found):
    return [getattr(found, name).tolist() for name in found.__dataclass_fields__]


def test_nothing_depends_on_the_number_or_order_of_tasks(tmp_path, monkeypatch):
    rows = rows_of()
    plain = as_lists(search(tmp_path / "plain", rows, evaluation=[7, 50]))
    assert {"duplicates", "leakage"} == set(plain[-1])
    engine = Backwards()
    monkeypatch.setattr(run, "_ROWS", 7)
    monkeypatch.setattr(run, "_PAIRS", 20)
    monkeypatch.setattr(run, "_RANGE", 1)
    monkeypatch.setattr(verify, "_CHARACTERS", 100)
    monkeypatch.setattr(verify, "_PAIRS", 3)
    assert as_lists(search(tmp_path / "many", rows, evaluation=[7, 50], engine=engine, shard=3)) == plain
    assert len({name.split("-")[0] for name in engine.ran}) == 3
    assert len(engine.ran) > 9 + 9 * 20 + 3


def test_a_killed_search_goes_on_where_it_stopped(tmp_path):
    rows = rows_of()
    whole = Backwards()
    truth = as_lists(search(tmp_path / "whole", rows, evaluation=[7, 50], engine=whole))
    for stop in (0, 1, 9, len(whole.ran) - 1):
        folder = tmp_path / f"stopped-{stop}"
        first, second = Backwards(stop), Backwards()
        with pytest.raises(KeyboardInterrupt):
            search(folder, rows, evaluation=[7, 50], engine=first)
        assert as_lists(search(folder, rows, evaluation=[7, 50], engine=second)) == truth
        assert sorted(first.ran + second.ran) == sorted(whole.ran)


@pytest.mark.parametrize("size", [candidates.FULL, candidates.FULL + 1, 300])
def test_pairs_of_a_bucket(size):
    """All of a small one; of a large one a number linear in the rows that joins every row to an earlier one."""
    generator = np.random.default_rng(0)
    rows = np.arange(size) * 3
    following = generator.integers(0, 2**63, 3 * size).astype(np.uint64)
    keys = np.full(size, 5, np.uint64)
    pairs = candidates._within(keys, rows, lambda which: following[which])
    later, earlier = unpack(pairs)
    assert (later > earlier).all()
    if size <= candidates.FULL:
        assert len(set(pairs.tolist())) == len(pairs) == size * (size - 1) // 2
    else:
        assert len(pairs) <= size * (candidates.NEXT + 1)
        assert set(later.tolist()) == set(rows[1:].tolist())
        order = rows[np.argsort(following[rows])]
        near = set(pack(np.maximum(order[1:], order[:-1]), np.minimum(order[1:], order[:-1])).tolist())
        assert near <= set(pairs.tolist())


def test_pairs_do_not_leave_their_bucket():
    keys = np.repeat(np.array([1, 2, 3, 4], np.uint64), [2, 3, 50, 50])
    rows = np.concatenate([[10, 20], [0, 5, 30], np.arange(100, 200)])
    bucket = dict(zip(rows.tolist(), keys.tolist(), strict=True))
    later, earlier = unpack(candidates._within(keys, rows, lambda which: which.astype(np.uint64)))
    assert all(bucket[a] == bucket[b] for a, b in zip(later.tolist(), earlier.tolist(), strict=True))
    evaluation = rows % 10 == 0
    across = candidates._across(keys, rows, evaluation, lambda which: which.astype(np.uint64))
    training, known = unpack(across)
    found = set(zip(training.tolist(), known.tolist(), strict=True))
    assert all(bucket[a] == bucket[b] and a % 10 and b % 10 == 0 for a, b in found)
    assert {(5, 0), (5, 30)} <= found
    assert {row for row, _ in found} == {5} | {row for row in range(100, 200) if row % 10}


def test_a_training_row_meets_a_bounded_number_of_evaluation_rows():
    rows = np.arange(400)
    evaluation = rows >= 200
    pairs = candidates._across(
        np.ones(400, np.uint64), rows, evaluation, lambda which: (which % 200).astype(np.uint64)
    )
    training, known = unpack(pairs)
    assert np.bincount(training).tolist() == [candidates.NEAREST] * 200
    # The nearest by the next band's key is the one that shares it.
    assert {(i, i + 200) for i in range(200)} <= set(zip(training.tolist(), known.tolist(), strict=True))


def test_rows_of_a_large_bucket_meet_by_the_next_band(tmp_path):
    size = 10 * candidates.FULL
    partner = (np.arange(size) + size // 2) % size
    bands = {
        "row_0": np.zeros(size, np.uint64),
        "row_1": np.minimum(np.arange(size), partner).astype(np.uint64),
    }
    write_table(pa.table(bands), tmp_path / "signatures.arrow")
    store = RowStore([tmp_path / "unread.arrow"], [size], 1)
    job = Search(store, (tmp_path / "signatures.arrow",), columns_of([("",)]), GovernancePolicy(), tmp_path)
    write_array(tmp_path / "distinct.npy", np.full(size, TRAINING, np.uint8))
    task = Band(job, Family("row", (0,), 6, 2, duplicates=True, leakage=False), 0, 0, 1)
    candidates.band_pairs(task)
    assert set(pack(np.arange(size // 2, size), np.arange(size // 2)).tolist()) <= set(
        np.load(task.path).tolist()
    )


def test_candidates_are_judged_by_their_texts_and_languages(tmp_path):
    """Whatever keys and sketches propose."""
    rows = [(SENTENCE,), (SENTENCE.replace("closed", "closes"),), ("Something else was written here.",)]
    rows.append(rows[1])
    store, signatures = prepare(tmp_path, rows, ["en", "en", "en", "fr"])
    job = Search(store, tuple(signatures), columns_of(rows), GovernancePolicy(), tmp_path)
    write_array(tmp_path / "distinct.npy", np.full(4, TRAINING, np.uint8))
    write_array(tmp_path / "pairs.npy", pack(np.array([1, 2, 2, 3, 3]), np.array([0, 0, 1, 0, 1])))
    task = verify.Verify(job, (tmp_path / "pairs.npy",), 0, 256)
    verify.verify(task)
    assert np.load(task.path)[["row", "other"]].tolist() == [(1, 0)]


def test_most_similar_candidates_of_each_kind_are_verified():
    count = 2 * verify.MOST
    rows = np.repeat([3, 8], 2 * count)
    leakage = np.tile(np.repeat([False, True], count), 2)
    estimate = np.tile(np.linspace(0.7, 0.9, count), 4)
    estimate[-1] = -1
    chosen = verify._best(rows, leakage, estimate).tolist()
    last = list(range(count - verify.MOST, count))
    assert chosen[: 3 * verify.MOST] == [block * count + i for block in range(3) for i in last]
    assert chosen[3 * verify.MOST :] == [3 * count + i - 1 for i in last]


def test_variants_of_a_template_are_one_group_at_linear_cost(tmp_path):
    generator = random.Random(0)
    body = " ".join(SENTENCE for _ in range(2)).replace("closed", "shut", 1)
    counts = {}
    for size in (400, 800):
        folder = tmp_path / str(size)
        rows = [(f"{body} Number {generator.randrange(10**4)}.",) for _ in range(size)]
        assert set(instead(search(folder, rows, shard=200)).values()) == {0}
        assert len(instead(search(folder, rows, shard=200))) == size - 1
        counts[size] = sum(len(np.load(path)) for path in (folder / "found").glob("pairs-*"))
    assert counts[800] < 2.2 * counts[400] < 2.2 * 400 * 20 * (candidates.NEXT + 1)


def test_representatives_leave_out_what_shares_the_first_text():
    # 0 – 1 – 2 – 3 and 4 – 5; 0 and 2 share the first text.
    left, right = np.array([0, 1, 2, 4]), np.array([1, 2, 3, 5])
    first = np.array([7, 8, 7, 9, 1, 2], np.uint64)
    assert representatives(left, right, first, 6).tolist() == [0, 0, 2, 2, 4, 4]
    assert representatives(left, right, None, 6).tolist() == [0, 0, 0, 0, 4, 4]
    # The way around the row that is left out keeps the others in the group.
    left, right = np.append(left, 1), np.append(right, 3)
    assert representatives(left, right, first, 6).tolist() == [0, 0, 2, 0, 4, 4]
    # Also by way of a later row.
    left, right = np.array([0, 1, 2]), np.array([2, 2, 3])
    assert representatives(left, right, np.array([7, 8, 9, 7], np.uint64), 4).tolist() == [0, 0, 0, 3]


def test_no_rows_and_single_rows(tmp_path):
    assert len(search(tmp_path / "one", [(SENTENCE,)])) == 0
    assert len(search(tmp_path / "dead", [(SENTENCE,), (SENTENCE,)], dead=[0, 1])) == 0
    assert len(search(tmp_path / "missing", [(None,), (None,)], evaluation=[1])) == 0
    nothing, columns = np.zeros(0, bool), columns_of([(SENTENCE,)])
    store = RowStore([], [], 1)
    found = find(store, [], nothing, nothing, columns, GovernancePolicy(), InProcess(), tmp_path / "none")
    assert len(found) == 0


def test_bad_arguments_are_named(tmp_path):
    rows = [(SENTENCE,), (SENTENCE,)]
    store, signatures = prepare(tmp_path, rows)
    columns, rules, none, all_ = columns_of(rows), GovernancePolicy(), np.zeros(2, bool), np.ones(2, bool)

    def call(files=signatures, alive=all_, evaluation=none, rules=rules):
        return find(store, files, alive, evaluation, columns, rules, InProcess(), tmp_path / "found")

    with pytest.raises(ValueError, match="signatures: 0 files for 1 shards"):
        call(files=[])
    with pytest.raises(ValueError, match="alive: bool of shape \\(1,\\)"):
        call(alive=all_[:1])
    with pytest.raises(ValueError, match="evaluation: int64 of shape"):
        call(evaluation=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="has no column leakage_0; sign the rows with this policy"):
        call(evaluation=np.array([True, False]), rules=policy(leakage={"threshold": 0.9}))
    other, _ = prepare(tmp_path / "other", rows[:1])
    with pytest.raises(ValueError, match="has 2 rows; its shard has 1"):
        find(other, signatures, all_[:1], none[:1], columns, rules, InProcess(), tmp_path / "found")


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("values", [1, 120, 3200])
def test_bound_of_sketches_loses_one_pair_in_ten_thousand(values, threshold):
    assert verify._bound(values, threshold) == binom.ppf(1e-4, values, threshold) / values
