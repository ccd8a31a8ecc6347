import json
from collections import Counter
from pathlib import Path

import pytest

from hybrid_kernels.training.data import (
    SAMPLE,
    available_splits,
    load_nli,
    read_jsonl,
    sample_shots,
    split_by_premise,
)
from tests.training.support import XNLI, needs_xnli


def record(**changes):
    return {"premise": "p", "hypothesis": "h", "label": 0, "language": "en"} | changes


def write(path: Path, *records) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


def test_jsonl_takes_labels_as_names_and_numbers(tmp_path):
    write(
        tmp_path / "train.jsonl",
        *(record(label=label) for label in (0, "1", "Contradiction", "contradictory")),
    )
    assert [row["label"] for row in load_nli(tmp_path, "train").rows] == [0, 1, 2, 2]


def test_language_comes_from_the_file_name(tmp_path):
    for language in ("en", "sw"):
        write(tmp_path / f"train-{language}.jsonl", {"premise": "p", "hypothesis": "h", "label": 1})
    data = load_nli(tmp_path, "train")
    assert data.languages == ["en", "sw"]
    assert [row["item"] for row in data.rows] == ["1", "1"]
    assert [row["language"] for row in load_nli(tmp_path, "train", ["sw"]).rows] == ["sw"]


def test_broken_lines_are_reported_with_file_and_line_and_the_rest_kept(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [
        json.dumps(record(id="a")).encode(),
        b'{"premise": "cut',
        b'["no object"]',
        json.dumps(record(label="maybe")).encode(),
        json.dumps({"premise": "p", "label": 0, "language": "en"}).encode(),
        b'{"premise": "\xff", "hypothesis": "h", "label": 0, "language": "en"}',
        b"",
        json.dumps(record(id="a")).encode(),
        json.dumps(record(premise=3)).encode(),
        json.dumps(record(premise="with a line separator \u2028 inside"), ensure_ascii=False).encode(),
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    data = load_nli(tmp_path, "train")
    assert [row["premise"] for row in data.rows] == ["p", "with a line separator \u2028 inside"]
    assert [one["line"] for one in data.malformed] == [2, 3, 4, 5, 6, 8, 9]
    assert {one["file"] for one in data.malformed} == {str(path)}
    reasons = [one["reason"] for one in data.malformed]
    expected = [
        "not JSON",
        "list",
        "'maybe'",
        "no field 'hypothesis'",
        "not UTF-8",
        "'a' was used",
        "not text",
    ]
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason


def test_tsv_with_wrong_column_count_and_header(tmp_path):
    (tmp_path / "dev-en.tsv").write_text(
        "premise\thypo\tlabel\nA.\tB.\tneutral\nA.\tB.\nA.\tB.\tx\tneutral\n", encoding="utf-8"
    )
    data = load_nli(tmp_path, "validation")
    assert [(row["premise"], row["label"], row["item"]) for row in data.rows] == [("A.", 1, "2")]
    assert [(one["line"], one["reason"][:9]) for one in data.malformed] == [
        (3, "2 columns"),
        (4, "4 columns"),
    ]


def test_all_lines_broken_is_an_error(tmp_path):
    (tmp_path / "test-en.tsv").write_text("one column\nanother\n")
    with pytest.raises(ValueError, match=r"no usable row.*test-en.tsv:1: 1 columns instead of 3"):
        load_nli(tmp_path, "test")


def test_missing_folder_split_and_language(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_nli(tmp_path / "absent", "train")
    with pytest.raises(FileNotFoundError, match="no file named like"):
        load_nli(tmp_path, "train")
    write(tmp_path / "train.jsonl", record())
    with pytest.raises(FileNotFoundError, match="no 'dev' split; it has train"):
        load_nli(tmp_path, "dev")
    with pytest.raises(ValueError, match="no rows in sw; it has en"):
        load_nli(tmp_path, "train", ["en", "sw"])
    with pytest.raises(ValueError, match="is a file"):
        load_nli(tmp_path / "train.jsonl", "train")


def test_rows_per_language(tmp_path):
    write(
        tmp_path / "train.jsonl",
        *(record(language=name, id=f"{name}{i}") for i in range(4) for name in ("en", "de")),
    )
    rows = load_nli(tmp_path, "train", rows_per_language=2).rows
    assert [row["id"] for row in rows] == ["en0", "de0", "en1", "de1"]


def test_read_jsonl(tmp_path):
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\nbroken\n')
    rows, malformed = read_jsonl(tmp_path / "some.jsonl")
    assert rows == [{"text": "a"}]
    assert [one["line"] for one in malformed] == [2]


@pytest.fixture
def hub_folder(tmp_path):
    """A local data set with facebook/xnli's two layouts, loaded through `datasets` as one from the hub is."""
    from datasets import ClassLabel, Dataset, Features, Translation, TranslationVariableLanguages, Value

    label = ClassLabel(names=["entailment", "neutral", "contradiction"])
    pairs = {
        "de": [("Hund", "Tier", 0), ("Haus", "rot", 1), ("Katze", "Hund", -1)],
        "en": [("dog", "animal", 0), ("house", "red", 1), ("cat", "dog", 2)],
    }
    plain = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": label})
    for language, rows in pairs.items():
        columns = {
            name: [row[i] for row in rows] for i, name in enumerate(("premise", "hypothesis", "label"))
        }
        (tmp_path / language).mkdir()
        Dataset.from_dict(columns, features=plain).to_parquet(str(tmp_path / language / "validation.parquet"))
    together = Features(
        {
            "premise": Translation(languages=["de", "en"]),
            "hypothesis": TranslationVariableLanguages(languages=["de", "en"]),
            "label": label,
        }
    )
    records = [
        {
            "premise": {name: pairs[name][i][0] for name in pairs},
            "hypothesis": {name: pairs[name][i][1] for name in pairs},
            "label": pairs["en"][i][2],
        }
        for i in range(3)
    ]
    (tmp_path / "all_languages").mkdir()
    Dataset.from_list([together.encode_example(one) for one in records], features=together).to_parquet(
        str(tmp_path / "all_languages" / "validation.parquet")
    )
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: validation\n    path: {name}/validation.parquet\n"
        for name in ("all_languages", "de", "en")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return tmp_path


def test_hub_configuration_per_language(hub_folder):
    assert available_splits(hub_folder) == ["dev"]
    data = load_nli(hub_folder, "dev", ["de", "en"])
    assert [
        (row["language"], row["premise"], row["hypothesis"], row["label"], row["item"]) for row in data.rows
    ] == [
        ("de", "Hund", "Tier", 0, "1"),
        ("de", "Haus", "rot", 1, "2"),
        ("en", "dog", "animal", 0, "1"),
        ("en", "house", "red", 1, "2"),
        ("en", "cat", "dog", 2, "3"),
    ]
    assert [(one["line"], one["reason"][:16]) for one in data.malformed] == [(3, "unknown label -1")]


def test_hub_all_languages_in_one_record(hub_folder):
    import shutil

    for name in ("de", "en"):
        shutil.rmtree(hub_folder / name)
    (hub_folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: all_languages\n  data_files:\n  - split: validation\n"
        "    path: all_languages/validation.parquet\n---\n"
    )
    rows = load_nli(hub_folder, "dev", ["de"]).rows
    assert [(row["premise"], row["hypothesis"], row["label"]) for row in rows] == [
        ("Hund", "Tier", 0),
        ("Haus", "rot", 1),
        ("Katze", "Hund", 2),
    ]


def test_sample_of_the_package():
    train, test = load_nli(SAMPLE, "train"), load_nli(SAMPLE, "test")
    assert not train.malformed and not test.malformed
    assert len(test.languages) >= 8
    assert not {row["premise"] for row in train.rows} & {row["premise"] for row in test.rows}


def make_rows(items=30, languages=("en", "de")):
    return [
        {
            "id": f"{language}{i}",
            "item": str(i),
            "language": language,
            "premise": f"{language} {i // 3}",
            "label": i % 3,
        }
        for i in range(items)
        for language in languages
    ]


def test_shots_are_balanced_nested_and_seeded():
    rows = make_rows(60)
    samples = {k: sample_shots(rows, k, seed=0) for k in (8, 16, 32)}
    for k, sample in samples.items():
        counts = Counter((row["language"], row["label"]) for row in sample)
        assert len(sample) == 2 * k
        assert max(counts.values()) - min(counts.values()) <= 1
    ids = {k: {row["id"] for row in sample} for k, sample in samples.items()}
    assert ids[8] < ids[16] < ids[32]
    assert ids[8] != {row["id"] for row in sample_shots(rows, 8, seed=1)}
    # A row that governance removes is replaced; nobody else moves.
    without = [row for row in rows if row["id"] != min(ids[8])]
    assert len({row["id"] for row in sample_shots(without, 8, seed=0)} & ids[8]) == len(ids[8]) - 1


def test_split_leaks_no_premise_and_no_item():
    rows = make_rows(60)
    # One premise occurs in two triples of one language only: these must stay together in all languages.
    rows = [row | {"premise": "en 0"} if row["premise"] == "en 1" else row for row in rows]
    train, evaluation = split_by_premise(rows, 0.3, seed=0)
    assert len(train) + len(evaluation) == len(rows)
    assert 0.3 <= len(evaluation) / len(rows) < 0.45
    for key in (lambda row: row["item"], lambda row: (row["language"], row["premise"])):
        assert not {key(row) for row in train} & {key(row) for row in evaluation}
    assert sum(row["item"] in map(str, range(6)) for row in train) in (0, 12)
    reordered = split_by_premise(rows[::-1], 0.3, seed=0)[1]
    assert {row["id"] for row in reordered} == {row["id"] for row in evaluation}


def test_split_of_one_group_is_an_error():
    with pytest.raises(ValueError, match="cannot be split"):
        split_by_premise([row | {"premise": "same"} for row in make_rows(6)], 0.5, seed=0)


@needs_xnli
def test_xnli_folder():
    data = load_nli(XNLI, "dev")
    assert len(data.languages) == 15 and len(data.rows) == 15 * 2490 and not data.malformed
    train, evaluation = split_by_premise(data.rows, 0.5, seed=0)
    assert abs(len(train) - len(evaluation)) < 200
    assert not {row["item"] for row in train} & {row["item"] for row in evaluation}
