"""The commands govern, govern-check and govern-policy."""

import json
import shlex

import pyarrow.parquet as pq
import pytest
import yaml

from hybrid_kernels.governance import GovernancePolicy

GOOD = {
    "text": "The committee will publish its yearly findings on Tuesday morning.",
    "language": "en",
    "key": "a",
}


@pytest.fixture
def inputs(tmp_path):
    lines = [json.dumps(GOOD), json.dumps(GOOD), "{broken", json.dumps(GOOD | {"text": "#### !!!! ----"})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "in.jsonl"


@pytest.fixture
def govern(command, inputs, tmp_path):
    """Runs govern on the input: (exit code, stdout, stderr)."""

    def call(*more, out=tmp_path / "out", inputs=inputs):
        options = ["--languages", "en,de", "--text", "text", "--workers", "1", "--out", str(out)]
        claims = [] if "--expected" in more else ["--language-column", "language"]
        return command("govern", str(inputs), *options, *claims, *more)

    return call


def test_a_file_is_governed_and_checked(govern, command, tmp_path):
    code, text, err = govern("--id-column", "key")
    assert code == 0, err
    assert "kept 1 of 4 rows" in text
    assert "exact duplicate" in text and "malformed" in text
    out = tmp_path / "out"
    assert (out / "kept" / "in.jsonl").read_text() == json.dumps(GOOD) + "\n"
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [row["record"] for row in rejected] == [1, 2, 3]
    assert rejected[1]["row"] == "{broken\n"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["duplicate_ids"] == {"ids": 1, "rows": 3, "first": ["a"]}
    assert {"reading", "quality", "language", "duplicates", "writing"} <= set(summary["cost"])

    code, text, _ = command("govern-check", str(out))
    assert (
        code == 0
        and "is as it was written: 1 of 4 rows kept" in text
        and "made again by: hybrid-kernels" in text
    )
    (out / "kept" / "in.jsonl").write_text("")
    code, text, _ = command("govern-check", str(out))
    assert code == 1 and "wrong: kept/in.jsonl has changed" in text


def test_a_dry_run_writes_no_rows(govern, tmp_path):
    code, text, _ = govern("--dry-run")
    assert code == 0 and "kept 1 of 4 rows" in text and "dry run" in text
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["dry-run", "work"]
    names = sorted(path.name for path in (out / "dry-run").iterdir())
    assert names == ["policy.yaml", "report.html", "summary.json"]
    assert govern()[0] == 0 and (out / "manifest.json").exists()


def test_a_result_is_made_again_by_its_own_command(govern, command, inputs, tmp_path, monkeypatch):
    """Whatever policy.yaml lies where the inputs are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text("language: {enabled: false}")
    assert govern("--set", "duplicates.enabled=false", out="out [b]1", inputs=inputs.name)[0] == 0
    code, text, _ = command("govern-check", "out [b]1")
    assert code == 0, text
    again = text.partition("made again by: hybrid-kernels ")[2].partition("\n" + "out [b]1 is")[0]
    code, text, err = command(*shlex.split(again.replace("\\\n", "")))
    assert code == 0 and "OUT/kept" in text, err
    ids = [
        json.loads((tmp_path / out / "manifest.json").read_text())["result_id"] for out in ("out [b]1", "OUT")
    ]
    assert ids[0] == ids[1]


def test_folders_and_ids_are_shown_as_they_are(govern, tmp_path):
    out = tmp_path / "a [b]result"
    code, text, _ = govern("--id-column", "key", out=out)
    assert code == 0 and f"why: {out / 'report.html'}" in text
    assert "ids that name more than one row: 1, such as 'a'\n" in text
    assert f"see {out / 'dry-run' / 'report.html'}" in govern("--dry-run", out=out)[1]


def test_another_result_takes_the_place_of_the_first(govern, inputs, tmp_path):
    out = tmp_path / "out"
    assert govern()[0] == 0
    first = json.loads((out / "manifest.json").read_text())
    code, text, _ = govern("--set", "duplicates.enabled=false")
    assert code == 0 and "kept 2 of 4 rows" in text and "done before" in text
    assert json.loads((out / "manifest.json").read_text())["result_id"] != first["result_id"]
    assert len((out / "kept" / "in.jsonl").read_text().splitlines()) == 2
    (out / "kept" / "notes").write_text("mine")
    assert govern("--expected", "de")[0] == 0
    assert (out / "kept" / "in.jsonl").read_text() == "" and (out / "kept" / "notes").read_text() == "mine"
    inputs.rename(tmp_path / "renamed.jsonl")
    (out / "work" / ".x.arrow.1.partial").write_text("half")
    assert govern(inputs=tmp_path / "renamed.jsonl")[0] == 0
    assert sorted(path.name for path in (out / "kept").iterdir()) == ["notes", "renamed.jsonl"]
    assert not list(out.rglob("*.partial"))


def test_no_mixture_passes_for_a_result(govern, tmp_path, monkeypatch):
    assert govern()[0] == 0

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("hybrid_kernels.governance.api.write_rows", full)
    code, _, err = govern("--set", "duplicates.enabled=false")
    assert code == 2 and "No space left" in err
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_flags_are_no_reasons(govern, inputs, tmp_path):
    with inputs.open("a") as file:
        file.write(
            "\n"
            + json.dumps(GOOD | {"text": "Please write to anna@example.org about the new opening hours."})
        )
    assert govern("--set", "personal_data.enabled=true", "--set", "personal_data.action=flag")[0] == 0
    last = pq.read_table(tmp_path / "out" / "verdicts.parquet").to_pylist()[-1]
    assert (last["kept"], last["reasons"], last["flags"]) == (True, [], ["personal data: e-mail address"])
    assert (last["languages"], last["record"]) == (["en"], 4) and last["confidence"] > 0.9


def test_the_policy_is_a_file_and_changes_to_it(govern, command, tmp_path):
    code, text, _ = command("govern-policy")
    assert code == 0 and GovernancePolicy.model_validate(yaml.safe_load(text)) == GovernancePolicy()
    path = tmp_path / "policy.yaml"
    path.write_text("duplicates: {enabled: false}\nseed: 4\n")
    code, _, err = govern("--policy", str(path), "--set", "quality.max_symbols=1", "--seed", "7", "--dry-run")
    assert code == 0, err
    policy = json.loads((tmp_path / "out" / "dry-run" / "summary.json").read_text())["policy"]
    assert (policy["duplicates"]["enabled"], policy["quality"]["max_symbols"], policy["seed"]) == (
        False,
        1,
        7,
    )


def test_errors_are_of_the_user(govern, command, inputs, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("")
    for arguments, message in (
        (["--set", "quality.max_digits"], "--set takes SECTION.FIELD=VALUE, got 'quality.max_digits'"),
        (["--set", "quality.max_digit=1"], "max_digit: unknown key; did you mean quality.max_digits?"),
        (["--set", "max_digits=1"], "max_digits: unknown key; did you mean quality.max_digits?"),
        (["--set", "duplicate.threshold=1"], "duplicate: unknown key; did you mean duplicates?"),
        (["--set", "seed.first=1"], "seed: it is {'first': 1}, and may be a whole number"),
        (["--set", "quality.max_digits={"], "--set 'quality.max_digits={' is not YAML: line 1, column 2"),
        (["--set", "quality.max_symbols=3"], "max_symbols"),
        (["--engine", "spark"], "engine must be 'local' or 'ray', got 'spark'"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--expected", "fr"], "expected names fr, wanted are only en, de"),
        (["--translation"], "translation needs two text columns"),
        (["--id-column", "name"], "no id column 'name'"),
        (["--encoding", "utf-99"], "utf-99"),
        (["--evaluation", str(tmp_path / "absent.jsonl")], "no such file"),
        (["--evaluation", str(inputs)], "in.jsonl are the same"),
        (["--policy", str(tmp_path / "absent.yaml")], "absent.yaml"),
    ):
        code, _, err = govern(*arguments)
        assert code == 2 and message in err, err
    code, _, err = govern(out=full)
    assert code == 2 and "is not empty and holds no result of governance" in err
    code, _, err = govern(out=inputs)
    assert code == 2 and "is a file" in err
    assert command("govern-check", str(full))[0] == 2
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    code, _, err = command(
        "govern", str(empty), "--languages", "en", "--text", "text", "--out", str(tmp_path / "e")
    )
    assert code == 2 and "there are no rows in" in err


@pytest.mark.parametrize("named", ["kept/in.jsonl", "kept/*.jsonl", "kept", ".", ".."])
def test_a_result_is_not_written_over_its_input(govern, tmp_path, named):
    out = tmp_path / "out"
    assert govern()[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, _, err = govern(inputs=out / named)
    assert code == 2 and "lies in " in err, err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
