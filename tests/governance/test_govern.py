"""`govern` over data sets: rows in, kept and rejected rows out, and what it refuses."""

import json

import pytest
from datasets import Dataset, DatasetDict
from pydantic import ValidationError

from hybrid_kernels.governance import GovernancePolicy, govern

ENGLISH = [
    ("The train reached the station an hour late.", "The train was late."),
    ("The train reached the station an hour late.", "The train was not late."),
    ("A retired teacher repairs old radios near the harbour.", "Somebody repairs radios."),
]
SPANISH = [("El tren llegó a la estación con una hora de retraso.", "El tren llegó tarde.")]
COLUMNS = ["premise", "hypothesis"]


def row(language, texts, **more):
    return {"language": language, "premise": texts[0], "hypothesis": texts[1], **more}


def rows():
    clean = [row("en", texts) for texts in ENGLISH] + [row("es", texts) for texts in SPANISH]
    planted = [
        row("en", SPANISH[0]),
        row("en", (ENGLISH[2][0].upper(), ENGLISH[2][1])),
        row("es", ("<p>Menú</p>", "<br/>")),
        row("es", ("El museo abre los lunes.", None)),
        row("xx", ENGLISH[0]),
    ]
    return [{"id": f"r{i}", "label": i % 3, **r} for i, r in enumerate(clean + planted)]


def run(data, languages=("en", "es"), **options):
    options = {"text_columns": COLUMNS, "language_column": "language", "progress": False} | options
    return govern(data, languages, **options)


def test_rows_are_kept_unchanged_and_rejections_say_why():
    data = rows()
    result = run(data, id_column="id")
    assert result.kept.to_list() == data[:4]
    verdicts = [(r["id"], r["rejected_by"], r["reason"], r["duplicate_of"]) for r in result.rejected]
    assert verdicts == [
        ("r4", "language", "wrong language", None),
        ("r5", "duplicates", "exact duplicate", "r2"),
        ("r6", "quality", "markup", None),
        ("r7", "input", "no text", None),
        ("r8", "language", "outside the wanted languages", None),
    ]
    assert result.rejected[0]["detail"].startswith("premise: expected en, looks like es (p = ")
    assert result.rejected.select_columns(list(data[0])).to_list() == data[4:]


def test_summary_counts_everything_once():
    summary = run(rows()).summary
    assert (summary["rows"], summary["kept"], summary["rejected"]) == (9, 4, 5)
    assert {step: part["rejected"] for step, part in summary["by_step"].items()} == {
        "input": 1,
        "quality": 1,
        "language": 2,
        "duplicates": 1,
    }
    assert summary["by_step"]["quality"]["reasons"] == {"markup": 1, "symbols": 1}  # all of a row's
    assert {
        language: {key: counts[key] for key in ("rows", "kept", "rejected")}
        for language, counts in summary["by_language"].items()
    } == {
        "en": {"rows": 5, "kept": 3, "rejected": 2},
        "es": {"rows": 3, "kept": 1, "rejected": 2},
        "xx": {"rows": 1, "kept": 0, "rejected": 1},
    }
    (example,) = summary["examples"]["duplicates"]
    assert example["text"].startswith("A RETIRED TEACHER")
    assert "A retired teacher" in example["detail"]
    assert GovernancePolicy.model_validate(summary["policy"]) == GovernancePolicy()
    json.dumps(summary)


def test_duplicate_of_is_the_row_index_without_ids():
    assert run(rows()).rejected["duplicate_of"][:] == [None, 2, None, None, None]


def test_languages_are_assigned_where_none_is_claimed():
    data = [{"text": texts[0], "n": i} for i, texts in enumerate(ENGLISH[1:] + SPANISH)]
    data += [{"text": "Pociąg przyjechał na stację z godzinnym opóźnieniem.", "n": 3}]
    result = govern(data, ["en", "es"], text_columns=["text"], progress=False)
    assert result.kept["language"][:] == ["en", "en", "es"]
    assert result.kept.remove_columns("language").to_list() == data[:3]
    assert result.rejected["reason"][:] == ["outside the wanted languages"]
    (foreign,) = result.rejected["language"]
    assert result.summary["by_language"][foreign or "und"]["rejected"] == 1


@pytest.mark.parametrize("step", ["quality", "language", "duplicates"])
def test_steps_switch_off(step):
    result = run(rows(), policy=GovernancePolicy.model_validate({step: {"enabled": False}}))
    by_step = result.summary["by_step"]
    assert set(by_step) == {"input", "quality", "language", "duplicates"} - {step}
    assert all(by_step[other]["rejected"] for other in by_step)  # what is no text is never kept


def test_dataset_list_and_processes_agree():
    data = rows() * 3
    one = run(data)
    for other in (run(Dataset.from_list(data)), run(Dataset.from_list(data), num_proc=2)):
        assert other.kept.to_list() == one.kept.to_list()
        assert other.rejected.to_list() == one.rejected.to_list()
        assert other.summary == one.summary


def test_every_reason_of_a_row_is_told():
    data = [
        *rows()[:4],
        row("en", ("<p>El tren llegó a la estación con una hora de retraso.</p>", "Yes, it did.")),
    ]
    (rejected,) = run(data).rejected
    assert (rejected["rejected_by"], rejected["reason"]) == ("quality", "markup")
    reasons = json.loads(rejected["reasons"])
    assert [(one["step"], one["reason"], one["column"]) for one in reasons] == [
        ("quality", "markup", "premise"),
        ("language", "wrong language", "premise"),
    ]


def test_copies_of_evaluation_rows_go():
    data = rows()[:4]
    result = run(data, evaluation=[{name: data[1][name] for name in COLUMNS}], id_column="id")
    (leaked,) = result.rejected
    assert (leaked["id"], leaked["rejected_by"], leaked["duplicate_of"]) == ("r1", "leakage", None)
    assert ENGLISH[1][1] in leaked["detail"]
    assert result.summary["leakage"] == {"evaluation": 1}
    assert result.summary["rows"] == 4


def test_a_copy_names_the_kept_row_and_shows_the_one_it_resembles():
    first = "The committee of the harbour town will publish its yearly findings on Tuesday morning at nine."
    second = first.replace("Tuesday", "Wednesday")
    third = second.replace("harbour", "mountain")
    data = [{"text": text} for text in (first, second, third)]
    policy = GovernancePolicy.model_validate({"duplicates": {"threshold": 0.75}})
    result = govern(data, ["en"], text_columns=["text"], policy=policy, progress=False)
    assert result.rejected["duplicate_of"][:] == [0, 0]
    assert [row["detail"].split("with: ")[1] for row in result.rejected] == [first, second]


def test_kept_rows_are_repaired_masked_and_annotated():
    text = "Écrivez à anna@example.org si le cafÃ© est encore fermé demain matin."
    data = [{"text": text, "n": 1}, {"text": "Le musée ouvre ses portes à neuf heures.", "n": 2}]
    policy = GovernancePolicy.model_validate(
        {
            "quality": {"reject_mojibake": False},
            "personal_data": {"enabled": True, "action": "mask"},
            "repair": True,
            "annotate": True,
        }
    )
    result = govern(data, ["fr"], text_columns=["text"], policy=policy, progress=False)
    first, second = result.kept
    assert "anna@example.org" not in first["text"] and "cafÃ©" in first["text"]
    assert "anna@example.org" not in first["text_repaired"] and "café" in first["text_repaired"]
    assert second["text"] == second["text_repaired"] == data[1]["text"]
    assert (second["governance_language"], second["governance_flags"]) == ("fr", "")
    assert first["governance_flags"] == "personal data: e-mail address"
    assert "anna@example.org" not in json.dumps(result.summary)
    assert list(first)[:2] == ["text", "n"] and first["n"] == 1


def test_rejected_rows_are_masked_too():
    texts = [
        "Write to anna@example.org about the prices of the new museum in town.",
        "Schreiben Sie bitte an anna@example.org, wenn Sie das Museum besuchen möchten.",
        "anna@example.org",
        "<b>Write to anna@example.org</b>",
        "You can write to the museum (or anna@example.org",
        None,
    ]
    policy = GovernancePolicy.model_validate({"personal_data": {"enabled": True, "action": "mask"}})
    data = [{"text": text, "language": "en", "n": i} for i, text in enumerate(texts)]
    result = govern(
        data, ["en"], text_columns=["text"], language_column="language", policy=policy, progress=False
    )
    assert len(result.kept) == 1 and result.rejected["n"][:] == [1, 2, 3, 4, 5]
    assert result.rejected["text"][:] == [
        text and text.replace("anna@example.org", "[EMAIL]") for text in texts[1:]
    ]
    everything = json.dumps([result.rejected[:], result.kept[:], result.summary])
    assert "anna@" not in everything and "example.org" not in everything


def test_values_that_are_no_text_are_recorded():
    data = [row("en", ENGLISH[0]), row("en", (5, "Yes, it is.")), row("en", ("\ud800", "Yes, it is."))]
    data += [{"language": "en", "premise": "There is no hypothesis here."}, row("en", ([1], None))]
    result = run(data)
    assert len(result.kept) == 1
    assert result.rejected["reason"][:] == ["no text", "malformed", "no text", "no text"]
    details = result.rejected["detail"][:]
    assert details[0] == "premise is int"
    assert details[1].startswith("premise holds a lone surrogate")
    assert details[2] == "hypothesis is missing"
    assert details[3] == "premise is list"


def test_write_is_complete_and_atomic(tmp_path, monkeypatch):
    result = run(rows(), id_column="id")
    folder = result.write(tmp_path / "out" / "cleaned")
    assert sorted(path.name for path in folder.iterdir()) == ["kept.jsonl", "rejected.jsonl", "summary.json"]
    lines = (folder / "kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows()[:4]
    assert "estación" in lines[3]
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == result.summary
    assert len((folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()) == 5

    before = (folder / "kept.jsonl").read_bytes()
    monkeypatch.setattr("json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result.write(folder)
    assert (folder / "kept.jsonl").read_bytes() == before
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"text_columns": ["premise", "nothing"]},
            ValueError,
            r"no text column 'nothing'.*'hypothesis'",
        ),
        ({"language_column": "lang"}, ValueError, "no column of the expected language 'lang'"),
        ({"id_column": "key"}, ValueError, "no id column 'key'"),
        ({"languages": ["en", "klingon"]}, ValueError, "unknown language code 'klingon' in languages.* zu"),
        ({"languages": []}, ValueError, "languages is empty"),
        ({"languages": "en"}, TypeError, "languages must be a sequence of strings"),
        ({"text_columns": "premise"}, TypeError, "text_columns must be a sequence"),
        ({"text_columns": []}, ValueError, "text_columns is empty"),
        ({"text_columns": ["label"]}, TypeError, "column 'label' holds .*int64"),
        ({"data": []}, ValueError, "no rows"),
        ({"data": Dataset.from_list([])}, ValueError, "no rows"),
        ({"data": DatasetDict(train=Dataset.from_list(rows()))}, TypeError, "choose one of its splits"),
        ({"data": ["a string"]}, TypeError, "row 0 is no dictionary but str"),
        ({"data": [row("en", ENGLISH[0], x=1), row("en", ENGLISH[1], x="y")]}, TypeError, "column 'x'"),
        ({"data": [row("en", ENGLISH[0], reason="")]}, ValueError, r"\['reason'\].*rename"),
        ({"language_column": None}, ValueError, "pass language_column='language'"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, message):
    change = dict(change)
    data = change.pop("data", Dataset.from_list(rows()))
    with pytest.raises(error, match=message):
        run(data, **change)


def test_unknown_policy_key_is_refused():
    with pytest.raises(ValidationError, match="treshold"):
        GovernancePolicy.model_validate({"duplicates": {"treshold": 0.9}})
    with pytest.raises(ValidationError):
        GovernancePolicy.model_validate({"language": {"min_expected": 2}})


def test_a_result_shows_its_data_sets_and_not_pages_of_its_summary():
    shown = repr(run(rows()))
    assert shown.count("num_rows") == 2 and "by_step" not in shown
