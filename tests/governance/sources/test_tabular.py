"""Parquet files, data sets and lists: values in are values out."""

import datetime
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_dataset

from hybrid_kernels.governance import storage
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources import open_sources
from hybrid_kernels.governance.sources.tabular import _bounded
from tests.governance.sources.support import TEXT, kept_bytes, opened, problems, read, texts

COLUMNS = Columns(("text",), ("lang",), "key")
ROWS = [
    {"text": text, "lang": lang, "key": i, "when": datetime.date(2024, 1, i + 1), "many": [1.5] * i}
    for i, (text, lang) in enumerate(
        [
            ("plain", "en"),
            ("слово", "ru"),
            (None, None),
            ("a\0b", "x"),
            ("", "en"),
            ("二つ\nの", "zh"),
            ("z", None),
        ]
    )
]
PROBLEMS = [
    None,
    None,
    "no text: text is null",
    "text holds a NUL character at character 2",
    None,
    None,
    None,
]


def write(path, rows=ROWS, **options):
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path, **options)
    return path


def kinds(tmp_path):
    yield opened(write(tmp_path / "a.parquet", row_group_size=3), None, COLUMNS)
    shuffled = Dataset.from_list(ROWS[::-1]).select(range(6, -1, -1))  # by way of indices
    for rows in (ROWS, Dataset.from_list(ROWS), shuffled):
        [source] = open_sources([rows], COLUMNS)
        yield source


def test_rows_and_resuming(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 2)
    for source in kinds(tmp_path):
        rows = read(source)
        assert [row["problem"] for row in rows] == PROBLEMS
        assert [row["text_0"] for row in rows] == [
            row["text"] if not problem else None for row, problem in zip(ROWS, PROBLEMS, strict=True)
        ]
        assert [row["expected_0"] for row in rows] == [row["lang"] for row in ROWS]
        assert [row["id"] for row in rows] == [str(i) for i in range(7)]
        batches = list(source.batches())
        assert [len(table) for table, _ in batches] == [2, 2, 2, 1]
        assert batches[0][0].schema == storage.row_schema(COLUMNS)
        for _, position in batches:
            later = pickle.loads(pickle.dumps(source))
            assert read(later, json.loads(json.dumps(position))) == rows[position["record"] :]


def test_records_and_kept(tmp_path):
    kept = np.array([True, False, False, True, False, True, True])
    for source in kinds(tmp_path):
        assert list(source.records(np.array([2, 3, 6]))) == [(i, ROWS[i]) for i in (2, 3, 6)]
        assert list(source.records(np.array([], np.int64))) == []
        expected = [row for row, keep in zip(ROWS, kept, strict=True) if keep and source.format != "dataset"]
        expected = expected or [row for row, keep in zip(source.dataset.to_list(), kept, strict=True) if keep]
        result = source.write_kept(kept, tmp_path / "kept" / source.output_name)
        table = pq.read_table(result["path"])
        assert table.to_pylist() == expected
        assert result["rows"] == 4
        with pytest.raises(ValueError, match="has 7 records, and kept has 3 values"):
            source.write_kept(kept[:3], tmp_path / "kept" / "short.parquet")
        assert not list((tmp_path / "kept").glob("*short*"))


def test_the_schema_and_the_compression_stay(tmp_path):
    schema = pa.schema(
        [
            pa.field("text", pa.large_string(), nullable=False, metadata={"a": "b"}),
            ("label", pa.dictionary(pa.int8(), pa.string())),
            ("n", pa.decimal128(10, 2)),
        ],
        metadata={"origin": "here"},
    )
    labels = pa.array(["x", "y"]).dictionary_encode().cast(schema.field("label").type)
    table = pa.table(
        [pa.array(["a", "b"]).cast(pa.large_string()), labels, pa.array([1, None], pa.decimal128(10, 2))],
        schema=schema,
    )
    for compression in ("zstd", "gzip", "none", "snappy", "brotli", "lz4"):
        source = opened(write(tmp_path / "a.parquet", table, compression=compression), None)
        source.write_kept(np.array([False, True]), tmp_path / "out.parquet")
        again = pq.ParquetFile(tmp_path / "out.parquet")
        assert again.schema_arrow.equals(pq.read_schema(tmp_path / "a.parquet"), check_metadata=True)
        assert again.read().to_pylist() == table.to_pylist()[1:]
        column = again.metadata.row_group(0).column(0)
        assert column.compression == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())


def test_nothing_kept_is_a_file_without_rows(tmp_path):
    for source in kinds(tmp_path):
        result = source.write_kept(np.zeros(7, bool), tmp_path / "out.parquet")
        assert result["rows"] == pq.read_metadata(tmp_path / "out.parquet").num_rows == 0
        assert pq.read_schema(tmp_path / "out.parquet").names == list(ROWS[0])


def test_parquet_without_rows(tmp_path):
    source = opened(write(tmp_path / "a.parquet", pa.table({"text": pa.array([], pa.string())})), None)
    assert list(source.batches()) == []
    assert source.write_kept(np.zeros(0, bool), tmp_path / "out.parquet")["rows"] == 0


def test_features_of_a_data_set_stay(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    [source] = open_sources([rows], TEXT)
    for changes in (None, lambda record: {"text": "x"}):
        source.write_kept(np.array([True, True]), tmp_path / "out.parquet", changes)
        assert (
            Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path)).features == features
        )
    source.write_kept(np.array([True, True]), tmp_path / "new" / "out.parquet", lambda record: {"new": 1})
    again = load_dataset("parquet", data_files=str(tmp_path / "new/out.parquet"), cache_dir=str(tmp_path))[
        "train"
    ]
    assert again.to_list() == [{"text": "a", "label": 1, "new": 1}, {"text": "b", "label": 0, "new": 1}]


def test_columns_set_and_added(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 1)  # each row's types are found alone
    changes = {
        0: {"text": "new", "score": 1},
        4: {"score": 0.5, "flags": ["a", "b"]},
        5: {"key": 70},
        1: {"never": "x"},
    }
    kept = np.array([True, False, False, True, True, True, False])
    for source in kinds(tmp_path):
        source.write_kept(kept, tmp_path / "out.parquet", lambda record: changes.get(record, {}))
        found = pq.read_table(tmp_path / "out.parquet")
        assert found.schema.names == ["text", "lang", "key", "when", "many", "score", "flags"]
        assert found.schema.field("score").type == pa.float64()
        rows = found.to_pylist()
        assert [row["score"] for row in rows] == [1.0, None, 0.5, None]
        assert [row["flags"] for row in rows] == [None, None, ["a", "b"], None]
        assert [row["key"] for row in rows] == [0, 3, 4, 70]
        assert [row["text"] for row in rows][::2] == ["new", ""]
        assert [row["when"] for row in rows] == [ROWS[i]["when"] for i in (0, 3, 4, 5)]


def test_strings_that_are_no_utf8(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"caf\xe9", b"\xff"], pa.binary()).buffers())
    source = opened(write(tmp_path / "a.parquet", pa.table({"text": bad, "n": [1, 2, 3]})), None)
    found = problems(source)
    assert found[0] is None
    assert found[1].startswith("text: byte 0xE9 at byte 4 of the record is not utf-8")
    assert next(source.records(np.array([1]))) == (1, {"text": b"caf\xe9", "n": 2})
    source.write_kept(np.array([True, False, False]), tmp_path / "out.parquet")
    assert texts(opened(tmp_path / "out.parquet", None)) == ["ok"]


def test_a_damaged_row_group(tmp_path):
    rows = [{"text": f"{i} " + "x" * 100} for i in range(3000)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=1000, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    source = opened(path, None)
    found = read(source)
    assert [row["record"] for row in found] == list(range(3000))
    assert [i for i, row in enumerate(found) if row["problem"]] == list(range(1000, 2000))
    assert found[1500]["problem"].startswith("row group 1 of the file cannot be read: ")
    assert read(source, {"record": 1500}) == found[1500:]
    [(_, record)] = source.records(np.array([1500]))
    assert record.decode() == found[1500]["problem"]
    kept = np.array([not row["problem"] for row in found])
    assert source.write_kept(kept, tmp_path / "out.parquet")["rows"] == 2000
    with pytest.raises(OSError, match="rows that are to be kept cannot be read"):
        source.write_kept(~kept, tmp_path / "out.parquet")


def test_large_rows_come_in_small_tables(tmp_path):
    rows = [{"text": "x" * (5 << 20)} for _ in range(8)]
    for source in [
        opened(write(tmp_path / "a.parquet", rows), None),
        *open_sources([Dataset.from_list(rows)], TEXT),
    ]:
        assert [len(table) for table, _ in source.batches()] == [3, 3, 2]


def test_tables_of_large_rows_are_made_python_objects_of_in_slices():
    table = pa.table({"text": ["x" * (5 << 20), "y"] * 4})
    slices = list(_bounded(table))
    assert [len(part) for part in slices] == [4, 4]
    assert pa.concat_tables(slices).equals(table)
    assert [len(part) for part in _bounded(pa.table({"text": ["x" * (20 << 20)]}))] == [1]


def test_columns_are_checked(tmp_path):
    path = write(tmp_path / "a.parquet")
    for inputs in (path, ROWS, Dataset.from_list(ROWS)):
        with pytest.raises(
            ValueError, match=r"no text column 'txt'; its columns are \['text', 'lang', 'key'"
        ):
            open_sources([inputs], Columns(("txt",)))
    for inputs in (path, Dataset.from_list(ROWS)):
        with pytest.raises(TypeError, match="text column 'key' holds int64, not strings"):
            open_sources([inputs], Columns(("key",)))


def test_what_is_no_text_in_a_list(tmp_path):
    rows = [{"text": "a", "n": 1}, {"text": 5}, {"n": 3}, {"text": "\ud800"}, {"text": None}, {"text": b"x"}]
    [source] = open_sources([rows], TEXT)
    assert problems(source) == [
        None,
        "no text: text is int",
        "no text: text is missing",
        "text holds a lone surrogate, U+D800, at character 1",
        "no text: text is null",
        "no text: text is bytes",
    ]
    assert [row for _, row in source.records(np.array([1, 2, 3]))] == [
        {"text": 5},
        {"n": 3},
        {"text": "\\ud800"},
    ]
    assert source.dataset["text"][:] == ["a", None, None, None, None, None]
    assert source.dataset["n"][:] == [1, None, 3, None, None, None]
    with pytest.raises(TypeError, match="column 'n' cannot be stored in one type"):
        open_sources([[{"text": "a", "n": 1}, {"text": "a", "n": "x"}]], TEXT)


def test_fingerprints(tmp_path):
    path = write(tmp_path / "a.parquet")
    sources = list(kinds(tmp_path))
    assert sources[0].fingerprint()["bytes"] == path.stat().st_size
    prints = [source.fingerprint() for source in sources[1:]]
    assert all(p["rows"] == 7 and p["format"] == "dataset" and p["fingerprint"] for p in prints)
    [other] = open_sources([[*ROWS[:-1], {**ROWS[-1], "text": "other"}]], COLUMNS)
    [same] = open_sources([ROWS], COLUMNS)
    assert prints[0] == same.fingerprint() != other.fingerprint()


def test_changed_parquet(tmp_path):
    source = opened(write(tmp_path / "a.parquet"), None)
    write(tmp_path / "a.parquet", ROWS[:3])
    with pytest.raises(OSError, match=r"a\.parquet has changed"):
        list(source.batches())
    with pytest.raises(OSError, match=r"a\.parquet has changed"):
        kept_bytes(source, [True] * 7, tmp_path / "kept")
