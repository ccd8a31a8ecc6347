import json

import pytest

from hybrid_kernels.benchmarking import comparison

MACHINE = {"processor": "a", "cores": 2, "threads": 2, "gpu": None, "platform": "p"}
VERSIONS = {"hybrid_kernels": "0.1.0", "torch": "2.13.0"}


def record(side="ours", ratio=0.5, seconds=1.0, spread=0.01, **fields):
    """A side whose quartiles lie ``spread`` of the median around it."""

    def around(value):
        return [value * (1 - spread), value * (1 + spread)]

    return {
        "case": "operator/o/m1/float32/cpu",
        "dtype": "float32",
        "pass": "both",
        "side": side,
        "floor": "floor",
        "ours": "ours",
        "median_seconds": seconds,
        "quartiles_seconds": around(seconds),
        "ratios": {} if ratio is None else {"floor": {"median": ratio, "quartiles": around(ratio)}},
        "peak_bytes": None,
        "machine": MACHINE,
        "versions": VERSIONS,
        "commit": "abc1234",
        **fields,
    }


def test_the_ratio_of_ratios_to_the_floor_and_of_times():
    found = comparison.compare([record()], [record(ratio=0.55, seconds=0.9, peak_bytes=5)])
    (row,) = found.rows
    assert (row.case, row.part, row.side) == ("operator/o/m1/float32/cpu", "both", "ours")
    assert row.basis == "floor" and row.relative.ratio == pytest.approx(1.1) and row.relative.beyond
    assert row.seconds.ratio == pytest.approx(0.9) and row.seconds.beyond and row.peak_bytes is None
    assert not found.only_a and not found.only_b and not found.failed and not found.warnings


def test_what_lies_within_a_spread_is_not_beyond_it():
    for spread_a, spread_b in ((0.2, 0.01), (0.01, 0.2), (0.06, 0.06)):
        found = comparison.compare([record(spread=spread_a)], [record(ratio=0.55, spread=spread_b)])
        assert not found.rows[0].relative.beyond


def test_without_a_floor_sides_are_compared_by_their_ratio_to_ours_and_ours_by_time():
    to_ours = {"ours": {"median": 2.0, "quartiles": [2.0, 2.0]}}
    sides = [record(ratio=None, floor=None), record("peer", floor=None, ratios=to_ours)]
    ours, peer = sorted(comparison.compare(sides, sides).rows, key=lambda row: row.side)
    assert ours.basis is None and ours.relative is None and ours.change.ratio == 1
    assert peer.basis == "ours" and peer.relative.a == 2.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"machine": {**MACHINE, "cores": 64}}, "machine: cores is 2 in A and 64 in B"),
        ({"versions": {**VERSIONS, "torch": "2.14.0"}}, "versions: torch is 2.13.0 in A and 2.14.0 in B"),
    ],
)
def test_times_of_different_machines_or_versions_are_not_compared(fields, said):
    found = comparison.compare([record()], [record(ratio=0.55, **fields)])
    assert found.rows[0].seconds is None and found.rows[0].relative is not None
    assert found.warnings == [said, "so only ratios within each run are compared, not times"]


def test_times_of_a_file_from_two_machines_are_not_compared():
    file = [record(), record("peer", machine={**MACHINE, "cores": 64})]
    found = comparison.compare(file, file)
    assert [row.seconds for row in found.rows] == [None, None]
    assert found.warnings[0] == "machine: cores is 2, 64"


def test_another_version_of_this_package_is_what_is_compared():
    found = comparison.compare([record()], [record(versions={**VERSIONS, "hybrid_kernels": "0.2.0"})])
    assert not found.warnings and found.rows[0].seconds is not None


def test_dtypes_that_differ_are_said():
    half = record(case="operator/o/m1/bfloat16/cpu", dtype="bfloat16")
    found = comparison.compare([record()], [half])
    assert found.warnings == ["dtypes are float32 in A and bfloat16 in B"]
    assert found.only_a == [("operator/o/m1/float32/cpu", "both", "ours")] and len(found.only_b) == 1


def test_the_largest_change_comes_first_whichever_way():
    names = {"small": 0.51, "slower": 0.6, "faster": 0.3, "same": 0.5}
    found = comparison.compare([record(n) for n in names], [record(n, ratio) for n, ratio in names.items()])
    assert [row.side for row in found.rows] == ["faster", "slower", "small", "same"]


def test_the_latest_counts_and_measurements_against_a_commit_do_not():
    found = comparison.compare(
        [record(ratio=0.1), record(ratio=0.5)],
        [record(ratio=0.5), record(ratio=None, against={"commit": "c"})],
    )
    assert found.rows[0].relative.ratio == 1
    assert found.warnings == ["1 measurements of --against are left out; their ratios are in their own field"]


def test_failures_are_apart():
    failed = {**record("peer"), "failed": "out of memory"}
    found = comparison.compare([failed, record()], [record("peer"), record()])
    assert found.failed == {("operator/o/m1/float32/cpu", "both", "peer"): ("out of memory", None)}
    assert [row.side for row in found.rows] == ["ours"]


@pytest.fixture
def file(tmp_path):
    def write(name, records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return str(path)

    return write


def test_a_file_at_a_commit(file):
    path = file(
        "a.jsonl", [record(commit="abc1234"), record(commit="abc1234+changes.0"), record(commit="def5678")]
    )
    assert len(comparison.load(path)) == 3
    for name, commit in (("abc1234", "abc1234"), ("def", "def5678"), ("abc1234+", "abc1234+changes.0")):
        (found,) = comparison.load(f"{path}@{name}")
        assert found["commit"] == commit
    with pytest.raises(
        ValueError, match=r"has 2 commits named 'abc'; it has abc1234, abc1234\+changes.0, def5678"
    ):
        comparison.load(f"{path}@abc")
    with pytest.raises(ValueError, match="has 0 commits named 'f'"):
        comparison.load(f"{path}@f")


def test_a_name_with_an_at_sign_is_a_name(file):
    assert len(comparison.load(file("a@b.jsonl", [record()]))) == 1


def test_what_is_no_result_file_is_refused(tmp_path, file):
    with pytest.raises(ValueError, match=r"nothing\.jsonl' is no result file; it may be FILE or FILE@COMMIT"):
        comparison.load(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match="holds no measurement"):
        comparison.load(file("empty.jsonl", []))
