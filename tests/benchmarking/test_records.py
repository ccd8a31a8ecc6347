import errno
import json
import os

import pytest

from hybrid_kernels.benchmarking import records

CIRCUMSTANCES = {"commit": "abc1234", "machine": {"cores": 2}, "versions": {"torch": "2.13"}, "rounds": 5}


def record(side="ours", case="operator/a", part="both", **fields):
    return {"case": case, "pass": part, "side": side, **CIRCUMSTANCES, "date": "2026-01-01", **fields}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "bench.jsonl"


def test_records_are_read_as_they_were_appended(path):
    assert records.read(path) == []
    records.append(path, [record("a"), record("b")])
    records.append(path, [record("c", seconds=[0.25, None])])
    assert records.read(path) == [record("a"), record("b"), record("c", seconds=[0.25, None])]
    assert len(path.read_text().splitlines()) == 3


def test_a_torn_last_line_is_ignored_and_removed_before_more_is_appended(path):
    records.append(path, [record("a"), record("b")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert records.read(path) == [record("a")]
    records.append(path, [record("c")])
    assert records.read(path) == [record("a"), record("c")]


def test_a_last_line_without_its_end_is_kept_if_it_is_whole(path):
    records.append(path, [record("a")])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert records.read(path) == [record("a")]
    records.append(path, [record("b")])
    assert records.read(path) == [record("a"), record("b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not JSON", "it is no JSON object"),
        ("[1]", "it is no JSON object"),
        ('{"case": 1}', "'pass', 'side'"),
    ],
)
def test_reading_names_the_file_and_line_that_is_no_record(path, line, message):
    records.append(path, [record("a")])
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    records_after = json.dumps(record("b"))
    with path.open("a") as file:
        file.write(records_after)
    with pytest.raises(ValueError, match="bench.jsonl, line 3: .*" + message.replace("[", "\\[")):
        records.read(path)


def test_measurements_against_another_commit_stand_for_no_others():
    other = record("a", against={"commit": "abc1234"})
    assert not records.Done([other], CIRCUMSTANCES).run("operator/a", "both", ["a"])


def test_a_run_is_done_if_it_has_all_sides_under_the_same_circumstances():
    known = [record("a"), record("b"), record("c", date="2026-01-02")]
    done = records.Done(known, CIRCUMSTANCES)
    assert done.run("operator/a", "both", ["b", "a"]) == known[:2]
    assert done.run("operator/a", "both", ["a"]) == known[:1]
    # Of another run, so not interleaved with these.
    assert done.run("operator/a", "both", ["a", "b", "c"]) == []
    assert done.run("operator/a", "forward", ["a"]) == []
    assert done.run("operator/b", "both", ["a"]) == []


@pytest.mark.parametrize(
    "other",
    [{"commit": "def5678"}, {"commit": None}, {"machine": {"cores": 4}}, {"versions": {}}, {"rounds": 6}],
)
def test_other_circumstances_do_not_stand_for_these(other):
    done = records.Done([record("a")], {**CIRCUMSTANCES, **other})
    assert done.run("operator/a", "both", ["a"]) == []


def test_without_a_commit_the_versions_stand_for_it():
    unknown = {**CIRCUMSTANCES, "commit": None}
    assert records.Done([record("a", commit=None)], unknown).run("operator/a", "both", ["a"])
    newer = {**unknown, "versions": {"torch": "2.14"}}
    assert not records.Done([record("a", commit=None)], newer).run("operator/a", "both", ["a"])


def test_a_run_without_a_profile_is_not_done_where_one_is_asked_for():
    done = records.Done([record("a", profile=None)], CIRCUMSTANCES)
    assert done.run("operator/a", "both", ["a"]) and not done.run("operator/a", "both", ["a"], profiled=True)


def test_a_disk_that_fills_up_keeps_whole_lines_only(path, small_disk):
    records.append(path, [record("a")])
    size = path.stat().st_size
    small_disk(size + size // 2)
    with pytest.raises(OSError, match="what was written before is kept"):
        records.append(path, [record("b"), record("c")])
    assert path.stat().st_size == size and records.read(path) == [record("a")]


def test_no_space_is_an_error_that_names_the_file(path, monkeypatch):
    records.append(path, [record("a")])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        records.append(path, [record("b")])
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert records.read(path) == [record("a")]


def test_the_probe_finds_a_full_disk_and_leaves_nothing(path, small_disk):
    records.probe(path)
    assert not path.exists()
    records.append(path, [record("a")])
    before = path.read_bytes()
    records.probe(path)
    assert path.read_bytes() == before
    small_disk(len(before) + 100)
    with pytest.raises(OSError, match="nothing was measured"):
        records.probe(path)
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="nothing was measured"):
        records.probe(path.parent / "new.jsonl")
    assert not (path.parent / "new.jsonl").exists()


def test_the_probe_finds_a_folder_that_cannot_be_made(path):
    path.parent.mkdir()
    path.touch()
    with pytest.raises(OSError, match="nothing was measured"):
        records.probe(path / "below" / "bench.jsonl")
