"""Files in, files out: nothing changed that is kept, every row accounted for, the same whatever stops or runs it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hybrid_kernels.governance import GovernancePolicy, govern, govern_files, manifest
from hybrid_kernels.governance.engine import InProcess

SAMPLE = Path(str(files("hybrid_kernels.samples").joinpath("nli", "train.jsonl")))
PAIR = ["premise", "hypothesis"]


def sample():
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


LANGUAGES = sorted({row["language"] for row in sample()})
OPTIONS = {
    "text_columns": PAIR,
    "language_column": "language",
    "id_column": "id",
}


def write_lines(path, rows):
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def run(inputs, out, languages=LANGUAGES, **options):
    options = OPTIONS | {"workers": 2, "progress": False} | options
    return govern_files(inputs, languages, out, **options)


def result_files(out):
    """Content of all files of a result that every run makes the same."""
    names = [
        "rejected.jsonl",
        "verdicts.parquet",
        "policy.yaml",
        *(f"kept/{p.name}" for p in (out / "kept").iterdir()),
    ]
    content = {name: (out / name).read_bytes() for name in names}
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    content["summary"] = {key: value for key, value in summary.items() if key not in ("cost", "stages")}
    content["result"] = json.loads((out / "manifest.json").read_text())["result_id"]
    return content


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(inputs, evaluation, result) of a run that nothing happened to: two files, malformed lines, leaked rows."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rows = sample()
    inputs = [
        write_lines(folder / "a.jsonl", [*rows[: len(rows) // 2], "{broken", {"premise": "No hypothesis."}]),
        write_lines(folder / "b.jsonl", rows[len(rows) // 2 :]),
    ]
    evaluation = write_lines(folder / "test.jsonl", [row for row in rows if not row["planted"]][5:15])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybrid_kernels.governance.storage.MAX_ROWS", 20)
        run(inputs, folder / "out", evaluation=[evaluation])
    return inputs, evaluation, folder / "out"


def test_every_row_is_accounted_for(undisturbed):
    inputs, _, out = undisturbed
    lines = [line for path in inputs for line in path.read_text(encoding="utf-8").splitlines()]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    rejected = [
        json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    verdicts = pq.read_table(out / "verdicts.parquet").to_pylist()
    assert len(verdicts) == summary["rows"] == len(lines) == summary["kept"] + summary["rejected"]
    assert [row["kept"] for row in verdicts].count(False) == len(rejected) == summary["rejected"]

    for path in inputs:
        own = path.read_text(encoding="utf-8").splitlines(keepends=True)
        keeps = [row["kept"] for row in verdicts if row["source"] == str(path)]
        kept = "".join(line for line, keep in zip(own, keeps, strict=True) if keep)
        assert (out / "kept" / path.name).read_text(encoding="utf-8") == kept and 0 < len(kept) < len(
            "".join(own)
        )

    by_place = {(row["source"], row["record"]): row for row in verdicts}
    for row in rejected:
        line = dict(
            zip(map(str, inputs), (p.read_text(encoding="utf-8").splitlines() for p in inputs), strict=True)
        )[row["source"]][row["record"]]
        assert row["row"] == (line + "\n" if row["reason"] == "malformed" else json.loads(line))
        verdict = by_place[row["source"], row["record"]]
        assert f"{row['rejected_by']}: {row['reason']}" == verdict["reasons"][0]
        assert row["reasons"][0]["step"] == row["rejected_by"] and row["reasons"][0]["rejects"]
        assert row["id"] == verdict["id"]
    counted = {}
    for row in rejected:
        counted[row["rejected_by"]] = counted.get(row["rejected_by"], 0) + 1
    assert counted == {step: c["rejected"] for step, c in summary["by_step"].items() if c["rejected"]}


def test_copies_name_the_row_they_duplicate(undisturbed):
    inputs, evaluation, out = undisturbed
    rejected = [
        json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    kept = {str(path): (out / "kept" / path.name).read_text(encoding="utf-8").splitlines() for path in inputs}
    copies = [row for row in rejected if row["rejected_by"] == "duplicates"]
    leaked = [row for row in rejected if row["rejected_by"] == "leakage"]
    assert copies and len(leaked) >= 10
    for row in copies:
        first = row["duplicate_of"]
        line = Path(first["source"]).read_text(encoding="utf-8").splitlines()[first["record"]]
        assert line in kept[first["source"]] and json.loads(line)["id"] == first["id"]
        assert row["similarity"] == row["score"] >= 0.8 and row["linked_to"] is not None
    assert {row["duplicate_of"]["source"] for row in leaked} == {str(evaluation)}
    assert all(
        row["duplicate_of"] is None for row in rejected if row["rejected_by"] not in ("duplicates", "leakage")
    )


def test_memory_and_files_decide_the_same(undisturbed):
    inputs, evaluation, out = undisturbed
    rows = [
        json.loads(line)
        for path in inputs
        for line in path.read_text(encoding="utf-8").splitlines()
        if "{b" not in line
    ]
    test = [json.loads(line) for line in evaluation.read_text(encoding="utf-8").splitlines()]
    names = ("id", "language", *PAIR)
    result = govern(
        [{name: row[name] for name in names if name in row} for row in rows],
        LANGUAGES,
        evaluation=test,
        progress=False,
        **OPTIONS,
    )
    rejected = [
        json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    mine = [
        (row["id"], row["rejected_by"], row["reason"], row["detail"], row["score"]) for row in result.rejected
    ]
    assert mine == [
        (row["id"], row["rejected_by"], row["reason"], row["detail"], row["score"])
        for row in rejected
        if row["reason"] != "malformed"
    ]


def test_the_manifest_is_that_of_the_result(undisturbed, tmp_path):
    _, _, out = undisturbed
    assert manifest.check(out).problems == []
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "kept" / "a.jsonl").write_text("")
    assert not manifest.check(tmp_path / "out").passed


def inodes(work):
    return {path: path.stat().st_ino for path in work.rglob("*.arrow")}


COMMAND = """
import sys
if __name__ == "__main__":
    from hybrid_kernels.cli import main
    from hybrid_kernels.governance import storage
    storage.MAX_ROWS = int(sys.argv[1])
    main(sys.argv[2:])
"""


def start(tmp_path, inputs, evaluation, out, *more):
    script = tmp_path / "script.py"
    script.write_text(COMMAND)
    arguments = ["20", "govern", *map(str, inputs), "--languages", ",".join(LANGUAGES), "--out", str(out)]
    arguments += [
        "--language-column",
        "language",
        "--id-column",
        "id",
        "--evaluation",
        str(evaluation),
        "--workers",
        "2",
    ]

    return subprocess.Popen(
        [sys.executable, str(script), *arguments, *more],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_files(process, out, number):
    while process.poll() is None and sum(path.is_file() for path in out.rglob("*")) < number:
        time.sleep(0.002)


@pytest.mark.parametrize("seed", [0])
def test_killed_at_any_point_it_goes_on(undisturbed, tmp_path, seed):
    inputs, evaluation, expected = undisturbed
    out, before = tmp_path / "out", {}
    written = sum(path.is_file() for path in expected.rglob("*"))
    for number in sorted(random.Random(seed).sample(range(1, written), 2)):
        process = start(tmp_path, inputs, evaluation, out)
        wait_for_files(process, out, number)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL and not (out / "manifest.json").exists()
        now = inodes(out / "work")
        assert before.items() <= now.items()
        before = now
    process = start(tmp_path, inputs, evaluation, out)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert before.items() <= inodes(out / "work").items()
    assert result_files(out) == result_files(expected)
    assert not list(out.rglob(".*.partial"))


def test_the_result_is_kept_apart_from_the_inputs(undisturbed):
    inputs, _, result = undisturbed
    before = result_files(result)
    for one in (result / "kept" / "a.jsonl", f"{result}/**/a.jsonl"):
        with pytest.raises(ValueError, match=r"input .*a\.jsonl lies in out .*; name another folder"):
            run([one], result)
    with pytest.raises(ValueError, match=r"out .* lies in the input folder .*; name a folder outside"):
        run([inputs[0].parent], result.parent / "new")
    assert result_files(result) == before
    assert not (result.parent / "new").exists()


def test_a_folder_of_something_else_is_left_alone(undisturbed, tmp_path):
    for name in ("work/rows/mine/data", "rejected.jsonl", "summary.json", "manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    with pytest.raises(FileExistsError, match="is not empty and holds no result of governance"):
        run(undisturbed[0], tmp_path)
    assert {path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {"[]"}
    assert not (tmp_path / "work" / "lock").exists()


def test_a_result_is_replaced_when_its_work_is_gone(tmp_path):
    inputs = [write_lines(tmp_path / "in.jsonl", sample()[:5])]
    for _ in range(2):
        run(inputs, tmp_path / "out", workers=1)
        shutil.rmtree(tmp_path / "out" / "work")
    run(inputs, tmp_path / "dry", workers=1, dry_run=True)
    shutil.rmtree(tmp_path / "dry" / "work")
    run(inputs, tmp_path / "dry", workers=1)
    assert (tmp_path / "dry" / "manifest.json").exists()


def test_of_an_input_that_has_changed_nothing_stays(tmp_path):
    rows = sample()[:10]
    policy = GovernancePolicy(repair=True)
    for content in (rows, rows[:9]):
        run([write_lines(tmp_path / "in.jsonl", content)], tmp_path / "out", policy=policy, workers=1)
    work = tmp_path / "out" / "work"
    found = {
        kind: len(list(work.glob(f"{kind}/*"))) for kind in ("rows", "duplicates", "changes/*", "verdicts/*")
    }
    assert found == {"rows": 1, "duplicates": 1, "changes/*": 1, "verdicts/*": 1}


def test_tasks_may_run_in_another_folder(undisturbed, tmp_path, monkeypatch):
    """As those of a Ray cluster do, whatever the paths are relative to."""

    class Elsewhere(InProcess):
        def __init__(self, workers, reporter):
            super().__init__(reporter)

        def map(self, function, tasks, *more, **options):
            def moved(task):
                here = Path.cwd()
                os.chdir(tmp_path)
                try:
                    return function(task)
                finally:
                    os.chdir(here)

            return super().map(moved, tasks, *more, **options)

    inputs, _, result = undisturbed
    monkeypatch.setattr("hybrid_kernels.governance.api.LocalEngine", Elsewhere)
    monkeypatch.chdir(inputs[0].parent)
    run(["a.jsonl", "b.jsonl"], "elsewhere", evaluation=["test.jsonl"])
    for name in ("kept/a.jsonl", "kept/b.jsonl", "verdicts.parquet", "rejected.jsonl"):
        assert (Path("elsewhere") / name).exists()
    assert Path("elsewhere/kept/a.jsonl").read_bytes() == (result / "kept/a.jsonl").read_bytes()
    assert not any(tmp_path.iterdir())


def test_no_personal_data_is_written_where_it_is_masked(tmp_path):
    inputs = write_lines(
        tmp_path / "in.jsonl",
        [
            {"text": "Write to anna@example.org about the prices of the new museum in town."},
            {"text": "<a href='mailto:anna@example.org'>Write to us</a> about the new museum in town."},
            {"text": "The museum has moved to another town (ask anna@example.org"},
            '{"text": "Write to anna@example.org about the museum.',
            {"text": "anna@example.org\0"},
        ],
    )
    policy = GovernancePolicy.model_validate({"personal_data": {"enabled": True, "action": "mask"}})
    out = tmp_path / "out"
    options = {"text_columns": ["text"], "policy": policy, "workers": 1, "progress": False}
    assert govern_files(inputs, ["en"], out, **options)["rejected"] == 4
    shutil.rmtree(out / "work")
    content = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert content.count(b"[EMAIL]") > 5
    assert b"anna@" not in content and b"example.org" not in content


def test_rejected_rows_are_json_whatever_numbers_the_input_holds(tmp_path):
    inputs = write_lines(
        tmp_path / "in.jsonl",
        ['{"text": "The museum has moved.", "x": 1}', '{"text": "", "x": [NaN, 1e400, 2.5], "y": "NaN"}'],
    )
    govern_files(inputs, ["en"], tmp_path / "out", text_columns=["text"], workers=1, progress=False)
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)["row"]
    assert row == {"text": "", "x": [None, None, 2.5], "y": "NaN"}


def test_what_a_run_leaves_that_fails_while_it_writes_is_gone_with_the_next(
    undisturbed, tmp_path, monkeypatch
):
    inputs, _, _ = undisturbed

    def failing(*_):
        raise OSError("unplugged")

    with monkeypatch.context() as patch:
        patch.setattr("hybrid_kernels.governance.what_if.run", failing)
        with pytest.raises(OSError, match="unplugged"):
            run(inputs, tmp_path / "out")
    assert (tmp_path / "out" / "kept" / "b.jsonl").exists()
    run(inputs[:1], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "kept").iterdir()] == ["a.jsonl"]


def test_interrupted_it_says_how_to_go_on(undisturbed, tmp_path):
    inputs, evaluation, _ = undisturbed
    out = tmp_path / "out"
    process = start(tmp_path, inputs, evaluation, out)
    wait_for_files(process, out, 4)
    os.killpg(process.pid, signal.SIGSTOP)  # or it may be done before the other one is at work
    second = start(tmp_path, inputs, evaluation, out)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 2 and f"process {process.pid} is at work in {out}" in output
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in output, output
    assert "Traceback" not in output and not (out / "manifest.json").exists()


def test_ray_decides_the_same(undisturbed, tmp_path):
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    inputs, evaluation, expected = undisturbed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybrid_kernels.governance.storage.MAX_ROWS", 20)
        run(inputs, tmp_path / "out", evaluation=[evaluation], engine="ray")
    assert result_files(tmp_path / "out") == result_files(expected)


def test_the_cost_of_the_what_if_table_is_of_the_rows_it_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_kernels.governance.storage.MAX_ROWS", 20)
    monkeypatch.setattr("hybrid_kernels.governance.what_if.MAX_SHARDS", 1)
    summary = run(write_lines(tmp_path / "a.jsonl", sample()[:60]), tmp_path / "out", workers=1)
    assert summary["cost"]["what if"]["rows"] == summary["stages"]["what if"]["rows"] == 20
    assert summary["cost"]["writing"]["rows"] == 60


def test_translations_count_under_the_language_of_their_first_text(tmp_path):
    lines = [{"en": "The museum opens on Monday.", "es": "El museo abre los lunes."}]
    options = {"text_columns": ["en", "es"], "expected": ["en", "es"], "translation": True}
    options |= {"language_column": None, "id_column": None, "workers": 1}
    summary = run(write_lines(tmp_path / "a.jsonl", lines), tmp_path / "out", ["en", "es"], **options)
    assert {code: part["rows"] for code, part in summary["by_language"].items()} == {"en": 1}
    assert "Language of en" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
