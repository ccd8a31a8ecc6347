"""Columns set and added in what is kept: where nothing changes, bytes do not either."""

import csv
import io
import json

import pytest

from hybrid_kernels.governance.batch import Columns
from tests.governance.sources.support import COMPRESS, DECOMPRESS, PAIR, kept_bytes, opened, read, texts

JSONL = b'{"text": "a",  "n": 1.10}\r\n\n{"text":"b" , "n": 1e400 } \n{}\n{"text": "c"}'


def changed(source, folder, changes, kept=None):
    kept = kept or [True] * len(read(source))
    return kept_bytes(source, kept, folder, lambda record: changes.get(record, {}))[0]


def test_json_lines(tmp_path):
    source = opened(tmp_path / "a.jsonl", JSONL)
    assert changed(source, tmp_path / "kept", {}) == JSONL
    new = changed(
        source,
        tmp_path / "kept",
        {0: {"language": "en"}, 1: {"score": 0.5, "flags": ["x"]}, 3: {"text": "С"}},
    )
    assert new.split(b"\n") == [
        b'{"text": "a",  "n": 1.10, "language": "en"}\r',
        b"",
        b'{"text":"b" , "n": 1e400 , "score": 0.5, "flags": ["x"]}',
        b"{}",
        '{"text": "С"}'.encode(),
    ]
    assert changed(source, tmp_path / "kept", {2: {"x": 1}}, [False, False, True, False]) == b'{"x": 1}\n'
    assert changed(source, tmp_path / "kept", {1: {"x": "\ud800"}}, [False, True, False, False]) == (
        b'{"text":"b" , "n": 1e400 , "x": "\\ud800"}\n'
    )


@pytest.mark.parametrize("compression", COMPRESS)
def test_json_lines_compressed(tmp_path, compression):
    source = opened(tmp_path / f"a.jsonl{compression}", COMPRESS[compression](JSONL))
    new = DECOMPRESS[compression](
        changed(source, tmp_path / "kept", {0: {"text": "x"}}, [True, False, False, True])
    )
    rows = [json.loads(line) for line in new.split(b"\n") if line.strip()]
    assert rows == [{"text": "x", "n": 1.1}, {"text": "c"}]


CSV = b'premise,hypothesis,n\r\n"a, ""b""",  c ,1\r\n\r\n"two\r\nlines",d,02\ne,f,"3"'


def test_csv_set(tmp_path):
    source = opened(tmp_path / "a.csv", CSV, PAIR)
    assert changed(source, tmp_path / "kept", {}) == CSV
    new = changed(
        source,
        tmp_path / "kept",
        {0: {"hypothesis": 'x,"y"'}, 1: {"hypothesis": "z"}, 2: {"premise": "new\nline"}},
    )
    assert (
        new == b'premise,hypothesis,n\r\n"a, ""b""","x,""y""",1\r\n\r\n"two\r\nlines",z,02\n"new\nline",f,"3"'
    )


def test_csv_added(tmp_path):
    source = opened(tmp_path / "a.csv", CSV, PAIR)
    new = changed(source, tmp_path / "kept", {0: {"lang,": "en"}, 2: {"score": 0.5, "premise": "x"}})
    assert new == (
        b'premise,hypothesis,n,"lang,",score\r\n"a, ""b""",  c ,1,en,\r\n\r\n"two\r\nlines",d,02,,\nx,f,"3",,0.5'
    )
    rows = list(csv.DictReader(io.StringIO(new.decode(), newline="")))
    assert [row["score"] for row in rows] == ["", "", "0.5"]
    # Columns of rows that are not kept are not added.
    assert (
        changed(source, tmp_path / "kept", {0: {"lang": "en"}}, [False, False, True])
        == b'premise,hypothesis,n\r\ne,f,"3"'
    )


def test_tsv(tmp_path):
    content = b'premise\thypothesis\n"a\tb\n"it is 5"\tc\n"two\nlines"\td\n'
    source = opened(tmp_path / "a.tsv", content, PAIR)
    assert texts(source) == ['"a', "it is 5", "two\nlines"]
    new = changed(source, tmp_path / "kept", {0: {"premise": 'tab\t"'}, 1: {"x": 1}, 2: {"hypothesis": "e"}})
    assert new == b'premise\thypothesis\tx\n"tab\t"""\tb\t\n"it is 5"\tc\t1\n"two\nlines"\te\t\n'
    again = opened(tmp_path / "b.tsv", new, PAIR)
    assert texts(again) == ['tab\t"', "it is 5", "two\nlines"]


def test_the_one_field_of_a_line_set_to_nothing_stays_a_record(tmp_path):
    source = opened(tmp_path / "a.csv", b"text\na\nb\n")
    new = changed(source, tmp_path / "kept", {0: {"text": ""}})
    assert texts(opened(tmp_path / "b.csv", new)) == ["", "b"]


def test_malformed_records_are_left_alone(tmp_path):
    source = opened(tmp_path / "a.csv", b"text,b\na\nc,d\n")
    assert changed(source, tmp_path / "kept", {0: {"text": "x"}, 1: {"text": "x"}}) == b"text,b\na\nx,d\n"


def test_text(tmp_path):
    source = opened(tmp_path / "a.txt", b"a\r\nb\n")
    assert changed(source, tmp_path / "kept", {0: {"text": "x"}}) == b"x\r\nb\n"
    assert not source.can_add_columns
    with pytest.raises(
        ValueError, match=r"a\.txt: no columns can be added to it, and \['language'\] would be"
    ):
        changed(source, tmp_path / "kept", {1: {"language": "en"}})
    with pytest.raises(ValueError, match="cannot hold a newline"):
        changed(source, tmp_path / "kept", {1: {"text": "a\nb"}})
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["a.txt"]
    assert opened(tmp_path / "b.jsonl", b"").can_add_columns


def test_a_character_that_the_encoding_lacks(tmp_path):
    source = opened(tmp_path / "a.csv", b"text\na\n", encoding="latin-1")
    with pytest.raises(ValueError, match="convert the file to UTF-8"):
        changed(source, tmp_path / "kept", {0: {"text": "字"}})
    source = opened(tmp_path / "a.jsonl", b'{"text": "a"}\n', Columns(("text",)), encoding="latin-1")
    assert changed(source, tmp_path / "kept", {0: {"text": "字é"}}) == b'{"text": "\\u5b57\\u00e9"}\n'
