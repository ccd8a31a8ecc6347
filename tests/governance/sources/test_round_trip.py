"""Bytes in are bytes out, and reading goes on at any position."""

import hashlib
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from hybrid_kernels.governance import storage
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources.streams import partial_file
from tests.governance.sources.support import (
    COMPRESS,
    DECOMPRESS,
    TEXT,
    kept_bytes,
    opened,
    problems,
    read,
    texts,
)

BOM = b"\xef\xbb\xbf"
WORDS = ["plain", "zwölf", "слово", "二つの 文", "ประโยค", "كلمة", "ab\u2028cd", "e\u0301", "😀"]
JSONL = (
    '{"text": "plain", "n": 1.10}\n\n  \n{"text":"слово","n":1e400}\r\n \t{"text": "二つの\\u2028 文"}  \n'
    '{"n": 2, "text": "tab\\t"}\r\n\r\n{"text": "😀 last, no newline"}'
).encode()
CSV = (
    'id,text\r\n1,plain\r\n\r\n2,"quoted, with ""quotes"""\n3,"two\nlines\r\n\r\nand more"\r\n4,слово\n'
    '5,5" nails\n6,"二つの 文"\n7,'
).encode()
TSV = (
    b'id\ttext\n1\tplain\r\n\n2\t"all ""quoted"""\n3\t"Well, he said\n4\tit is "so\n'
    b'5\t"two\nlines"\n"6\n6"\tx\n7\t5"\n'
)
TXT = "plain\n\n\r\nслово\r\n ab\u2028cd\u0085e\rf \n\n二つの 文".encode()
FILES = {
    "a.jsonl": (JSONL, ["plain", "слово", "二つの\u2028 文", "tab\t", "😀 last, no newline"]),
    "a.csv": (
        CSV,
        [
            "plain",
            'quoted, with "quotes"',
            "two\nlines\r\n\r\nand more",
            "слово",
            '5" nails',
            "二つの 文",
            "",
        ],
    ),
    "a.tsv": (TSV, ["plain", 'all "quoted"', '"Well, he said', 'it is "so', "two\nlines", "x", '5"']),
    "a.txt": (TXT, ["plain", "", "", "слово", " ab\u2028cd\u0085e\rf ", "", "二つの 文"]),
}
each_file = pytest.mark.parametrize("name", FILES)
each_compression = pytest.mark.parametrize("compression", COMPRESS)


@each_file
@each_compression
@pytest.mark.parametrize("bom", [b"", BOM], ids=["", "bom"])
def test_all_kept_is_the_file(tmp_path, name, compression, bom):
    content, expected = FILES[name]
    source = opened(tmp_path / (name + compression), COMPRESS[compression](bom + content))
    assert problems(source) == [None] * len(expected)
    assert texts(source) == expected
    data, result = kept_bytes(source, [True] * len(expected), tmp_path / "kept")
    assert DECOMPRESS[compression](data) == bom + content
    assert compression != ".gz" or data[4:8] == b"\0" * 4  # no time
    assert result == {
        "path": str(tmp_path / "kept" / (name + compression)),
        "rows": len(expected),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [name + compression]


@each_file
def test_kept_and_rejected_are_the_file(tmp_path, name):
    content, expected = FILES[name]
    source = opened(tmp_path / name, content)
    rng = random.Random(0)
    for trial in range(8):
        kept = [rng.random() < 0.5 for _ in expected]
        ours, _ = kept_bytes(source, kept, tmp_path / "kept")
        again = opened(tmp_path / f"{trial}" / name, ours)
        assert texts(again) == [text for text, keep in zip(expected, kept, strict=True) if keep]
        theirs, _ = kept_bytes(source, [not keep for keep in kept], tmp_path / "rejected")
        header = content.split(b"\n")[0] + b"\n" if name[-3:] in ("csv", "tsv") else b""
        assert len(ours) + len(theirs) == len(content) + len(header)
        assert sorted(ours + theirs) == sorted(content + header)


@each_file
@each_compression
def test_reading_goes_on_at_every_position(tmp_path, name, compression, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 1)
    source = opened(tmp_path / (name + compression), COMPRESS[compression](BOM + FILES[name][0]))
    whole = read(source)
    assert [row["record"] for row in whole] == list(range(len(whole)))
    positions = [position for _, position in source.batches()]
    for i, position in enumerate(positions):
        later = pickle.loads(pickle.dumps(source))
        assert read(later, json.loads(json.dumps(position))) == whole[i + 1 :]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_positions_far_into_a_file(tmp_path, compression, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 1000)
    rng = random.Random(1)
    rows = [" ".join(rng.choices(WORDS, k=rng.randrange(30))) for _ in range(10_000)]
    content = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    source = opened(tmp_path / f"a.jsonl{compression}", COMPRESS[compression](content))
    positions = [position for _, position in source.batches()]
    assert [position["record"] for position in positions] == list(range(1000, 10_001, 1000))
    assert texts(source) == rows
    for position in positions[::3]:
        assert [row["text_0"] for row in read(source, position)] == rows[position["record"] :]


def test_resuming_reads_nothing_that_came_before(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 2)
    source = opened(tmp_path / "a.jsonl", b'{"text": "a"}\n' * 4)
    [_, (_, position)] = source.batches()
    monkeypatch.setattr(source, "_record", None)
    assert read(source, position) == []


def test_a_table_is_bounded_by_rows_and_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 4)
    monkeypatch.setattr(storage, "MAX_BYTES", 20)
    lengths = [1, 1, 1, 1, 1, 30, 7, 7, 5, 1, 1]
    source = opened(tmp_path / "a.txt", b"".join(b"x" * n + b"\n" for n in lengths))
    assert [len(table) for table, _ in source.batches()] == [4, 1, 1, 4, 1]
    source = opened(tmp_path / "b.txt", "字字字\n字字字\n字字字\n".encode())  # bytes, not characters
    assert [len(table) for table, _ in source.batches()] == [2, 1]


def test_tables_have_the_schema_of_shards(tmp_path):
    columns = Columns(("a", "b"), ("=en", "lang"), id="key")
    lines = [{"a": "x", "b": "y", "lang": "de", "key": 7}, {"a": "x", "b": "y", "lang": 3, "key": "\ud800"}]
    lines.append({"a": None, "b": "y", "lang": None})
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    source = opened(tmp_path / "a.jsonl", content, columns)
    [(table, _)] = source.batches()
    assert table.schema == storage.row_schema(columns)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["7", "\\ud800", None]
    assert [row["expected_0"] for row in rows] == ["en"] * 3
    assert [row["expected_1"] for row in rows] == ["de", "3", None]
    assert rows[2]["problem"] == "no text: a is null"
    assert rows[2]["text_0"] is rows[2]["text_1"] is None


@pytest.mark.parametrize(
    ("expected", "found"), [(("lang",), ["de", "de"]), (("=en",), ["en", "en"]), ((), [None, None])]
)
def test_one_expected_language_holds_for_both_texts(tmp_path, expected, found):
    source = opened(tmp_path / "a.csv", b"a,b,lang\nx,y,de\n", Columns(("a", "b"), expected))
    assert [read(source)[0][f"expected_{i}"] for i in range(2)] == found


@each_file
def test_records_are_all_columns(tmp_path, name):
    content, expected = FILES[name]
    source = opened(tmp_path / name, content)
    wanted = np.array([1, 2, len(expected) - 1])
    found = list(source.records(wanted))
    assert [record for record, _ in found] == wanted.tolist()
    assert [row["text"] for _, row in found] == [expected[i] for i in wanted]
    assert list(source.records(np.array([], np.int64))) == []
    if name == "a.jsonl":
        assert next(iter(source.records(np.array([0]))))[1] == {"text": "plain", "n": 1.1}
    if name == "a.csv":
        assert found[0][1]["id"] == "2"


@pytest.mark.parametrize("encoding", ["cp1252", "gb18030", "shift_jis", "latin-1"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_other_encodings(tmp_path, encoding, suffix):
    words = {"gb18030": ["表,達", "𠀀字"], "shift_jis": ["表示ソ", 'ソ"能']}.get(
        encoding, ["façade", "naïve ÿ"]
    )
    rendered = {
        "csv": "text\n" + "".join('"' + word.replace('"', '""') + '"\n' for word in words),
        "jsonl": "".join(json.dumps({"text": word}, ensure_ascii=False) + "\n" for word in words),
        "txt": "".join(word + "\n" for word in words),
    }[suffix]
    content = rendered.encode(encoding)
    source = opened(tmp_path / f"a.{suffix}", content, encoding=encoding)
    assert texts(source) == words
    assert kept_bytes(source, [True, True], tmp_path / "kept")[0] == content
    changed, _ = kept_bytes(
        source, [True, True], tmp_path / "kept", lambda i: {"text": "new"} if i == 0 else {}
    )
    again = opened(tmp_path / "again" / f"a.{suffix}", changed, encoding=encoding)
    assert texts(again) == ["new", words[1]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("content", [b"", BOM])
def test_an_empty_file_has_no_rows(tmp_path, name, content):
    source = opened(tmp_path / name, content)
    assert list(source.batches()) == []
    data, result = kept_bytes(source, [], tmp_path / "kept")
    assert (data, result["rows"]) == (content, 0)


@pytest.mark.parametrize("content", [b"text,b", b"text,b\r\n", BOM + b"\n\ntext,b\n\n"])
def test_a_file_with_a_header_alone(tmp_path, content):
    source = opened(tmp_path / "a.csv", content)
    assert list(source.batches()) == []
    assert kept_bytes(source, [], tmp_path / "kept")[0] == content


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_ten_megabytes_in_a_row(tmp_path, name, compression):
    long = "字" * ((10 << 20) // 3)
    content = {
        "a.jsonl": f'{{"text": "a"}}\n{{"text": "{long}"}}\n{{"text": "b"}}\n',
        "a.csv": f'text\na\n"{long}\n{"x" * 200_000}"\nb\n',
        "a.txt": f"a\n{long}\nb",
    }[name].encode()
    source = opened(tmp_path / (name + compression), COMPRESS[compression](content))
    [first, middle, last] = texts(source)
    assert (first, last) == ("a", "b")
    assert middle.removesuffix("\n" + "x" * 200_000) == long
    written, _ = kept_bytes(source, [True] * 3, tmp_path / "kept")
    assert DECOMPRESS[compression](written) == content


def test_a_source_that_changes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_ROWS", 1)
    path = tmp_path / "a.jsonl"
    for use in (
        lambda s: list(s.batches()),
        lambda s: list(s.records(np.array([0]))),
        lambda s: kept_bytes(s, [True, True], tmp_path / "kept"),
        lambda s: s.fingerprint(),
    ):
        source = opened(path, b'{"text": "a"}\n{"text": "b"}\n')
        path.write_bytes(b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
        with pytest.raises(OSError, match=r"a\.jsonl has changed"):
            use(source)
    source = opened(path, b'{"text": "a"}\n{"text": "b"}\n')
    batches = source.batches()
    next(batches)
    path.write_bytes(b'{"text": "a"}\n')
    with pytest.raises(OSError, match="has changed"):
        next(batches)
    assert not (tmp_path / "kept").exists() or not list((tmp_path / "kept").iterdir())


def test_a_source_that_changes_while_it_is_copied(tmp_path):
    source = opened(tmp_path / "a.jsonl", b'{"text": "a"}\n')

    def changes(record):
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n')
        return {}

    with pytest.raises(OSError, match=r"a\.jsonl has changed"):
        kept_bytes(source, [True], tmp_path / "kept", changes)
    assert list((tmp_path / "kept").iterdir()) == []


def test_kept_of_another_length_is_an_error_and_leaves_nothing(tmp_path):
    source = opened(tmp_path / "a.txt", b"a\nb\n")
    for kept in ([True], [True] * 3):
        with pytest.raises(ValueError, match="records"):
            kept_bytes(source, kept, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []
    with pytest.raises(ValueError, match="has 2 records, and number 5"):
        list(source.records(np.array([1, 5])))


def test_fingerprint(tmp_path):
    source = opened(tmp_path / "a.txt", b"a\nb\n")
    assert source.fingerprint() == {
        "name": str(tmp_path / "a.txt"),
        "format": "text",
        "bytes": 4,
        "sha256": hashlib.sha256(b"a\nb\n").hexdigest(),
    }
    assert source.columns == TEXT


def test_a_full_disk_is_told_with_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"before")
    with (
        pytest.raises(OSError, match=r"a\.txt could not be written: No space left on device"),
        partial_file(tmp_path / "a.txt") as partial,
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        partial.write_bytes(b"half")
        full.write(b"more")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
