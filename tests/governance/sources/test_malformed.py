"""Whatever a file holds is rows, each with what is wrong with it; nothing raises and nothing is lost."""

import gzip
import json
import random
import tracemalloc

import numpy as np
import pytest

from hybrid_kernels.governance import storage
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources import lines
from tests.governance.sources.support import (
    COMPRESS,
    DECOMPRESS,
    PAIR,
    kept_bytes,
    opened,
    problems,
    read,
    texts,
)

GOOD = b'{"text": "good"}\n'
JSON_PROBLEMS = {
    b'{"text": "a"': "broken JSON: Expecting ',' delimiter at character 14",
    b'{"text": "a"} x': "broken JSON: Extra data at character 15",
    b'{"text": "a\x00b"}': "broken JSON: Invalid control character at at character 12",
    b"nonsense": "broken JSON: Expecting value at character 1",
    b'["text"]': "no JSON object but list",
    b"3": "no JSON object but int",
    b"null": "no JSON object but NoneType",
    b'{"other": "a"}': "no text: text is missing",
    b'{"text": null}': "no text: text is null",
    b'{"text": 5}': "no text: text is int",
    b'{"text": true}': "no text: text is bool, True",
    b'{"text": ["a"]}': "no text: text is list",
    b'{"text": "a\\u0000"}': "text holds a NUL character at character 2",
    b'{"text": "ab\\ud83d"}': "text holds a lone surrogate, U+D83D, at character 3",
    b'{"text": "a", "n": ' + b"9" * 5000 + b"}": "broken JSON: Exceeds the limit",
    b'{"text": "a", "n": ' + b"[" * 201 + b"]" * 201 + b"}": "broken JSON: nested more than 200 deep",
    b"[" * 100_000: "broken JSON: nested more than 200 deep",
    b'{"text": "caf\xe9 noir"}': "byte 0xE9 at byte 14 of the record is not utf-8",
    b'{"text": "\xed\xa0\x80"}': "byte 0xED at byte 11 of the record is not utf-8",
    b"\xef\xbb\xbf" + GOOD: "broken JSON: Unexpected UTF-8 BOM",
}


@pytest.mark.parametrize("line", JSON_PROBLEMS, ids=range(len(JSON_PROBLEMS)))
def test_json_lines(tmp_path, line):
    ending = b"" if line.endswith(b"\n") else b"\n"
    source = opened(tmp_path / "a.jsonl", GOOD + line + ending + GOOD)
    [before, row, after] = read(source)
    assert (before["problem"], after["problem"]) == (None, None)
    assert (before["text_0"], row["text_0"], after["text_0"]) == ("good", None, "good")
    assert row["problem"].startswith(JSON_PROBLEMS[line])
    [(_, record)] = source.records(np.array([1]))
    # What is an object is one for the reader of rejected rows too, unless it cannot be written.
    if row["problem"].startswith(("broken", "no JSON", "byte", "text holds a lone")):
        assert record == line + ending
    else:
        assert record == json.loads(line)
    assert kept_bytes(source, [False, True, False], tmp_path / "kept")[0] == line + ending


def test_depth_that_is_allowed(tmp_path):
    line = b'{"text": "[", "n": ' + b"[" * 199 + b"]" * 199 + b"}\n"
    source = opened(tmp_path / "a.jsonl", line)
    assert problems(source) == [None]
    source = opened(tmp_path / "b.jsonl", b'{"text": "' + b"[" * 500 + b'"}\n')
    assert problems(source) == [None]


CSV_PROBLEMS = {
    b"a,b,c\n": "3 fields instead of 2",
    b"a\n": "1 fields instead of 2",
    b'a,"b" c\n': "text stands behind a closing quote",
    b'"a,b\n': "a quote is opened and not closed",
    b"a\xff,b\n": "byte 0xFF at byte 2 of the record is not utf-8",
    b'"a\xff,\n",b\n': "byte 0xFF at byte 3 of the record is not utf-8",
    b"a\x00b,c\n": "premise holds a NUL character at character 2",
    b'"a\x00b",c\n': "premise holds a NUL character at character 2",
}


@pytest.mark.parametrize("line", CSV_PROBLEMS, ids=range(len(CSV_PROBLEMS)))
def test_csv(tmp_path, line):
    content = b"premise,hypothesis\nx,y\n" + line + b"x,y\n"
    source = opened(tmp_path / "a.csv", content, PAIR)
    assert [p and p[: len(CSV_PROBLEMS[line])] for p in problems(source)] == [None, CSV_PROBLEMS[line], None]
    assert kept_bytes(source, [False, True, False], tmp_path / "kept")[0] == b"premise,hypothesis\n" + line


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path):
    content = b"premise,hypothesis\n" + b"x,y\n" * 5 + b'"open,y\n' + b"x,y\n" * 5000
    source = opened(tmp_path / "a.csv", content, PAIR)
    found = problems(source)
    assert len(found) == 5006
    assert [i for i, problem in enumerate(found) if problem] == [5]


def test_many_quotes_that_are_not_closed_are_read_in_linear_time(tmp_path):
    # Each line opens a quote that the next one closes, with another field behind: a record without end.
    content = b"premise,hypothesis\n" + b'a","\n' * 20_000
    source = opened(tmp_path / "a.csv", content, PAIR)
    found = problems(source)
    assert len(found) == 20_000
    assert all(found)


def test_undecodable_bytes_of_a_file_in_another_encoding(tmp_path):
    rows = [
        "Der Bär wäre über die Brücke gegangen, hätte er größere Füße gehabt.",
        "Vögel hören schöne Töne.",
    ] * 50
    source = opened(tmp_path / "a.txt", "\n".join(rows).encode("cp1252"))
    [*found] = problems(source)
    assert all(
        "is not utf-8; the file looks like " in problem and "(pass encoding=" in problem for problem in found
    )
    named = found[0].split("encoding=")[1].strip("')")
    assert texts(opened(tmp_path / "a.txt", None, encoding=named)) == rows


def test_an_undecodable_record_of_a_file_that_is_utf8(tmp_path):
    good = "Bär\n".encode() * 20_000  # more than is looked at when the file is opened
    source = opened(tmp_path / "a.txt", good + "ein Café am See\n".encode("cp1252") + "Bär".encode()[:-2])
    [*_, accent, cut] = problems(source)
    assert accent == "byte 0xE9 at byte 8 of the record is not utf-8; read as cp1252 it is 'ein Café am See'"
    assert "a character that is cut off" in cut


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")],
)
def test_wide_encodings_are_named(tmp_path, encoding, name):
    with pytest.raises(ValueError, match=rf"a\.csv looks like {name}, .*iconv -f {name} "):
        opened(tmp_path / "a.csv", "premise,hypothesis\nxä,y\n".encode(encoding), PAIR)


def test_records_beyond_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_RECORD", 1000)
    long = "x" * 300_000  # several chunks
    files = {
        "a.jsonl": ("", '{"text": "a"}\n', f'{{"text": "{long}"}}\n', '{"text": "b"}\n'),
        "a.txt": ("", "a\n", f"{long}\n", "b\n"),
        "a.csv": ("text\n", "a\n", f'"{long}"\n', "b\n"),
        "a.tsv": ("text\n", "a\n", f"{long}\n", "b\n"),
        "b.txt": ("", "a\n", long, ""),
    }
    for name, (header, before, large, after) in files.items():
        content = (header + before + large + after).encode()
        source = opened(tmp_path / name, content)
        found = read(source)
        assert [row["text_0"] for row in found] == ["a", None, "b"][: 3 if after else 2]
        assert found[1]["problem"].startswith("larger than 1,000 bytes")
        assert list(source.records(np.array([1]))) == [(1, large[:1000].encode())]
        assert kept_bytes(source, [True] * len(found), tmp_path / "kept")[0] == content
        without = [i != 1 for i in range(len(found))]
        assert kept_bytes(source, without, tmp_path / "kept")[0] == (header + before + after).encode()


@pytest.mark.parametrize("length", [998, 999, 1000, 1001])
def test_the_bound_does_not_depend_on_where_reading_begins(tmp_path, monkeypatch, length):
    monkeypatch.setattr(lines, "MAX_RECORD", 1000)
    monkeypatch.setattr(storage, "MAX_ROWS", 1)
    source = opened(tmp_path / "a.txt", (b"x" * length + b"\n") * 200)
    found = problems(source)
    assert [problem is None for problem in found] == [length < 1000] * 200
    for _, position in list(source.batches())[::13]:
        assert [row["problem"] for row in read(source, position)] == found[position["record"] :]


def test_a_quoted_field_beyond_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_RECORD", 1000)
    field = b'"' + b"line\n" * 300 + b'"'
    source = opened(tmp_path / "a.csv", b"text\na\n" + field + b"\nb\n")
    found = problems(source)
    assert found[1] == "a quote is opened and not closed"
    assert texts(source)[:3] == ["a", None, "line"]
    assert len(found) == 1 + 301 + 1


def test_memory_does_not_grow_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_RECORD", 1 << 20)
    source = opened(tmp_path / "a.txt", b"x" * (40 << 20) + b"\nb\n")
    tracemalloc.start()
    try:
        assert texts(source) == [None, "b"]
        kept_bytes(source, [False, True], tmp_path / "kept")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_a_compressed_file_that_breaks_off(tmp_path, compression, suffix):
    rng = random.Random(2)
    rows = [f"{i} {rng.getrandbits(200):x}" for i in range(10_000)]
    rendered = {
        "txt": rows,
        "csv": ["text", *rows],
    }[suffix]
    content = "\n".join(rendered).encode()
    second = COMPRESS[compression](content[300_000:])
    data = COMPRESS[compression](content[:300_000]) + second[: len(second) // 2]
    source = opened(tmp_path / f"a.{suffix}{compression}", data)
    found = read(source)
    assert len(found) > 1000
    assert [row["text_0"] for row in found[:-1]] == rows[: len(found) - 1]
    assert found[-1]["problem"].startswith("the compressed file is damaged from here on: ")
    kept = [True] * len(found)
    whole, _ = kept_bytes(source, kept, tmp_path / "kept")
    assert content.startswith(DECOMPRESS[compression](whole))
    kept[-1] = False
    written, _ = kept_bytes(source, kept, tmp_path / "kept")
    assert texts(opened(tmp_path / "again" / f"a.{suffix}{compression}", written)) == rows[: len(found) - 1]
    positions = [position for _, position in source.batches()]
    assert read(source, positions[0]) == found[positions[0]["record"] :]


def test_damage_behind_a_quote_that_is_not_closed(tmp_path):
    data = gzip.compress(b'text\na\n"b\nc\nd')
    found = read(opened(tmp_path / "a.csv.gz", data[:-8] + b"\0" * 8))
    assert [row["text_0"] for row in found] == ["a", None, "c", None]
    assert found[1]["problem"] == "a quote is opened and not closed"
    assert found[3]["problem"].startswith("the compressed file is damaged")


def test_a_large_malformed_record_is_handed_out_whole(tmp_path, monkeypatch):
    line = b'{"text": "' + b"x" * (2 << 20) + b"\n"
    source = opened(tmp_path / "a.jsonl", line)
    assert list(source.records(np.array([0]))) == [(0, line)]
    monkeypatch.setattr(lines, "MAX_RECORD", len(line))  # and of one beyond the bound its first MiB
    assert list(source.records(np.array([0]))) == [(0, line[: 1 << 20])]


def test_damage_at_the_end_of_a_line_is_a_row_too(tmp_path):
    data = gzip.compress(b"a\nb\n")
    source = opened(tmp_path / "a.txt.gz", data[:-8] + b"\0" * 8)  # the check sum
    found = read(source)
    assert [row["text_0"] for row in found] == ["a", "b", None]
    assert found[2]["problem"].startswith("the compressed file is damaged from here on: CRC")
    assert list(source.records(np.array([2]))) == [(2, b"")]


def check_whole(source, folder, content, monkeypatch):
    """Everything that must hold of any bytes."""
    rows = read(source)
    assert [row["record"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert all(
            (row[f"text_{i}"] is None) == (row["problem"] is not None)
            for i in range(len(source.columns.texts))
        )
    assert [record for record, _ in source.records(np.arange(len(rows)))] == list(range(len(rows)))
    assert kept_bytes(source, [True] * len(rows), folder)[0] == content
    alternate = [i % 2 == 0 for i in range(len(rows))]
    ours, _ = kept_bytes(source, alternate, folder)
    theirs, _ = kept_bytes(source, [not keep for keep in alternate], folder)
    none, _ = kept_bytes(source, [False] * len(rows), folder)
    assert len(ours) + len(theirs) == len(content) + len(none)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "MAX_ROWS", max(1, len(rows) // 3))
        for _, position in source.batches():
            assert read(source, position) == rows[position["record"] :]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "txt"])
@pytest.mark.parametrize("seed", range(36))
def test_random_bytes(tmp_path, monkeypatch, suffix, seed):
    monkeypatch.setattr(lines, "MAX_RECORD", 50)
    rng = random.Random(seed)
    alphabet = [
        [bytes([i]) for i in range(256)],
        [b'"', b'""', b",", b"\t", b"\n", b"\r\n", b"\r", b"a", b"b", "é".encode(), b"\xe9", b"\0"],
        [b'{"text": "', b'"}', b"\n", b"\\u", b"d800", b"\\", b"null", b"[", b"{", b"a", b'"', b" ", b"\xff"],
    ][seed % 3]
    header = {"csv": b"text,b,c\r\n", "tsv": b"text\tb\tc\n"}.get(suffix, b"")
    content = header + b"".join(rng.choices(alphabet, k=rng.randrange(400)))
    path = tmp_path / f"a.{suffix}"
    try:
        source = opened(path, content)
    except ValueError as error:  # of a file that is not what its name says
        assert any(
            phrase in str(error) for phrase in ("looks like UTF", "no text column 'text'", "JSON array")
        )
        return
    check_whole(source, tmp_path / "kept", content, monkeypatch)


def test_ids_and_languages_that_are_no_strings(tmp_path):
    rows = [{"text": "a", "id": value, "l": value} for value in (1, 2.5, None, True, [1], {"a": 1}, "\udc00")]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = read(opened(tmp_path / "a.jsonl", content, Columns(("text",), ("l",), id="id")))
    assert [row["id"] for row in found] == ["1", "2.5", None, "True", "[1]", "{'a': 1}", "\\udc00"]
    assert [row["expected_0"] for row in found] == [row["id"] for row in found]
    assert [row["problem"] for row in found] == [None] * 7
