"""Manifests: the same result has the same id, and an audit finds whatever is no longer as it was written."""

import json
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hybrid_kernels.governance import manifest
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.policy import GovernancePolicy, PerplexityPolicy, QualityPolicy

COLUMNS = Columns(("premise", "hypothesis"), ("language",), "uid")


def source(name, rows, content=b"x" * 10):
    return {"name": name, "format": "jsonl", "bytes": len(content), "sha256": "0" * 64, "rows": rows}


def made(inputs=None, policy=None, seconds=1.0, engine="local", **changes):
    arguments = {
        "inputs": [source("a.jsonl", 3)] if inputs is None else inputs,
        "outputs": [{"name": "kept/a.jsonl", "bytes": 1, "sha256": "2" * 64, "rows": 2}],
        "columns": COLUMNS,
        "languages": ["en", "sw"],
        "policy": policy or GovernancePolicy(),
        "counts": {"rows": 3, "kept": 2, "rejected": 1},
        "run": manifest.Run(engine, 2, seconds, {"quality": {"rows": 3}}),
    }
    return manifest.manifest(**arguments | changes)


@pytest.fixture
def result(tmp_path, monkeypatch):
    """A folder as a run writes it, and the current folder that holds its input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"premise": "one"}\n{"premise": "two"}\n{"premise": "three"}\n')
    folder = tmp_path / "out"
    (folder / "kept").mkdir(parents=True)
    (folder / "kept" / "a.jsonl").write_text('{"premise": "one"}\n{"premise": "three"}\n')
    (folder / "rejected.jsonl").write_text('{"premise": "two"}\n')
    pq.write_table(pa.table({"kept": [True, False, True]}), folder / "verdicts.parquet")
    outputs = [
        manifest.describe(folder, name, rows)
        for name, rows in (("kept/a.jsonl", 2), ("rejected.jsonl", 1), ("verdicts.parquet", 3))
    ]
    inputs = [{"format": "jsonl", **manifest.describe(tmp_path, "a.jsonl", 3)}]
    finish(folder, made(inputs, outputs=outputs))
    return folder


def finish(folder, found):
    manifest.write_policy(folder, GovernancePolicy())
    manifest.write_summary(folder, found["counts"])
    (folder / "report.html").write_text("<!doctype html>")
    manifest.write_manifest(folder, found)


def test_the_id_is_that_of_the_result_not_of_the_run():
    first = made()
    assert made(seconds=9.0, engine="ray")["result_id"] == first["result_id"]
    assert made(seconds=9.0, engine="ray")["run"] != first["run"]
    for changed in (
        made([source("a.jsonl", 3) | {"sha256": "1" * 64}]),
        made(policy=GovernancePolicy(quality=QualityPolicy(min_letters=3))),
        made(policy=GovernancePolicy(seed=1)),
        made(counts={"rows": 3, "kept": 1, "rejected": 2}),
        made(columns=Columns(("premise",))),
        made(languages=["en"]),
        made(encoding="latin-1"),
        made(evaluation=[source("test.jsonl", 1)]),
    ):
        assert changed["result_id"] != first["result_id"]


def test_a_manifest_holds_what_is_needed_to_make_the_result_again():
    found = made(policy=GovernancePolicy(seed=7))
    assert found["seed"] == found["policy"]["seed"] == 7
    assert found["policy"]["quality"]["max_digits"] == 0.5
    assert found["columns"] == {
        "texts": ["premise", "hypothesis"],
        "expected": ["language"],
        "id": "uid",
        "translation": False,
    }
    assert found["versions"]["python"] and found["versions"]["py3langid"]
    assert "torch" not in found["versions"]
    with_model = GovernancePolicy(perplexity=PerplexityPolicy(enabled=True, model="m"))
    assert "torch" in made(policy=with_model)["versions"]
    assert len(found["package"]["code"]) == 64


def test_nothing_of_the_machine_or_its_environment_is_in_a_manifest(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_TOKEN", "verysecret")
    monkeypatch.chdir(tmp_path)
    text = json.dumps(made())
    assert "verysecret" not in text and str(tmp_path) not in text


def test_a_result_as_it_was_written_passes(result):
    audit = manifest.check(result)
    assert audit.passed and audit.problems == [] and audit.notes == []
    assert yaml.safe_load((result / "policy.yaml").read_text()) == audit.manifest["policy"]
    files = [file["name"] for file in audit.manifest["run"]["files"]]
    assert files == ["summary.json", "report.html", "policy.yaml"]


@pytest.mark.parametrize(
    "name",
    ["kept/a.jsonl", "rejected.jsonl", "verdicts.parquet", "summary.json", "report.html", "policy.yaml"],
)
def test_a_changed_or_missing_file_is_found(result, name):
    with (result / name).open("ab") as file:
        file.write(b" ")
    assert [problem.split(" has changed")[0] for problem in manifest.check(result).problems] == [name]
    (result / name).unlink()
    assert [problem.split(" cannot")[0] for problem in manifest.check(result).problems] == [name]


def test_a_change_that_leaves_the_size_is_found(result):
    path = result / "kept" / "a.jsonl"
    path.write_text(path.read_text().replace("three", "eerht"))
    assert manifest.check(result).problems == ["kept/a.jsonl has changed: 40 bytes, 40 in the manifest"]


def test_a_file_that_the_run_did_not_write_is_found(result):
    (result / "kept" / "more.jsonl").write_text("{}\n")
    assert manifest.check(result).problems == ["kept/more.jsonl is not in the manifest"]


def test_an_edited_manifest_is_found(result):
    path = result / "manifest.json"
    path.write_text(path.read_text().replace('"max_digits": 0.5', '"max_digits": 0.6'))
    (problem,) = manifest.check(result).problems
    assert problem.startswith("manifest.json has been edited")


def test_a_changed_input_is_a_problem_and_one_that_is_not_here_a_note(result, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"premise": "other"}\n')
    (problem,) = manifest.check(result).problems
    assert problem.startswith("the input a.jsonl has changed")
    monkeypatch.chdir(result)
    audit = manifest.check(result)
    assert audit.passed and audit.notes[0].startswith("a.jsonl is not reachable from here")


def test_other_versions_are_notes(result, monkeypatch):
    monkeypatch.setattr(manifest, "_version", lambda library: "0.0" if library == "ftfy" else None)
    monkeypatch.setattr(manifest, "revision", lambda: "f" * 64)
    audit = manifest.check(result)
    assert audit.passed
    assert any(note.startswith("made with ftfy") and note.endswith("here is 0.0") for note in audit.notes)
    assert any("other code of governance" in note for note in audit.notes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rows": 3, "kept": 2, "rejected": 2}, "2 kept and 2 rejected rows are not the 3 read"),
        ({"rows": 4, "kept": 3, "rejected": 1}, "the inputs have 3 rows, 4 were judged"),
        ({"rows": 3, "kept": 1, "rejected": 2}, "the files of kept rows hold 2 rows, 1 are kept"),
        ({"rows": 3, "kept": 1, "rejected": 2}, "rejected.jsonl has 1 lines, 2 rows are rejected"),
        ({"rows": 4, "kept": 3, "rejected": 1}, "verdicts.parquet has 3 rows, 4 were judged"),
    ],
)
def test_counts_that_do_not_add_up_are_found(result, changes, problem):
    before = manifest.read_manifest(result)
    finish(result, made(before["inputs"], outputs=before["outputs"], counts=changes))
    assert problem in manifest.check(result).problems


def test_a_summary_of_another_run_is_found(result):
    found = manifest.read_manifest(result)
    manifest.write_summary(result, {"rows": 3, "kept": 3, "rejected": 0})
    manifest.write_manifest(result, found)
    assert manifest.check(result).problems == [
        "summary.json counts 3 as kept, manifest.json 2",
        "summary.json counts 0 as rejected, manifest.json 1",
    ]


def test_what_is_no_manifest_is_an_error(result):
    (result / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        manifest.check(result)
    (result / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="must have the schema 1, has 99"):
        manifest.check(result)
    (result / "manifest.json").write_text('{"schema": 1, "inputs": []}')
    with pytest.raises(ValueError, match="lacks result_id, evaluation"):
        manifest.check(result)
    (result / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="no result, or one that was not finished"):
        manifest.check(result)


def test_a_manifest_is_not_written_before_the_rest(tmp_path):
    with pytest.raises(FileNotFoundError):
        manifest.write_manifest(tmp_path, made())
    assert list(tmp_path.iterdir()) == []


def words(found, out="OUT"):
    return shlex.split(manifest.command(found, "a result", out).replace("\\\n", ""))


def test_the_command_makes_the_same_run():
    found = made(
        [source("my data/a.jsonl", 3)],
        evaluation=[source("test.jsonl", 1), source("dev.jsonl", 1)],
        encoding="utf-16",
    )
    assert words(found, "again") == [
        *("hybrid-kernels", "govern", "my data/a.jsonl", "--languages", "en,sw"),
        *("--text", "premise,hypothesis", "--language-column", "language", "--id-column", "uid"),
        *("--evaluation", "test.jsonl", "--evaluation", "dev.jsonl", "--encoding", "utf-16"),
        *("--policy", "a result/policy.yaml", "--out", "again"),
    ]


def test_claims_of_a_translation_are_constants_in_its_command():
    found = made(columns=Columns(("en", "de"), ("=en", "=de"), translation=True))
    assert "--text en,de --expected en,de --translation --policy" in " ".join(words(found))


def test_a_dry_run_is_made_again_as_one():
    assert " --dry-run " in manifest.command(made(outputs=[])) and " --dry-run " not in manifest.command(
        made()
    )


def test_a_data_set_of_the_hub_is_named_in_the_command():
    hub = {"name": "hub:owner/set:train", "format": "dataset", "rows": 3, "fingerprint": "a"}
    assert words(made([hub]))[:3] == ["hybrid-kernels", "govern", "hub:owner/set:train"]
