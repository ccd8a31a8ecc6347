"""CSV as Python's own reader reads it; TSV in both of its dialects."""

import csv
import io
import os
import random
import re
from pathlib import Path

import pytest

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources.delimited import quoted_fields
from hybrid_kernels.governance.sources.lines import Lines
from hybrid_kernels.governance.sources.record_file import split_ending
from tests.governance.sources.support import PAIR, kept_bytes, opened, problems, read, texts

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
POSITIONS = Columns(("0", "1"))


def rendered(rows, **options):
    file = io.StringIO(newline="")
    csv.writer(file, **options).writerows([["premise", "hypothesis", "x"], *rows])
    return file.getvalue().encode()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_what_the_standard_writer_writes(tmp_path, suffix, seed):
    rng = random.Random(seed)
    alphabet = ["a", "字", " ", '"', "\n", "\r\n", ",", "\t", "'", ""]
    rows = [["".join(rng.choices(alphabet, k=rng.randrange(8))) for _ in range(3)] for _ in range(60)]
    if suffix == "tsv":  # tabs and newlines in one field may look like the end of a record
        rows = [[field.replace("\t" if i % 2 else "\n", "") for field in row] for i, row in enumerate(rows)]
    content = rendered(
        rows,
        delimiter={"csv": ",", "tsv": "\t"}[suffix],
        lineterminator=rng.choice(["\n", "\r\n"]),
        quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    )
    source = opened(tmp_path / f"a.{suffix}", content, PAIR)
    assert problems(source) == [None] * 60
    assert texts(source) == [row[0] for row in rows]
    assert texts(source, 1) == [row[1] for row in rows]
    assert kept_bytes(source, [True] * 60, tmp_path / "kept")[0] == content


def test_the_quick_way_agrees_with_the_slow_one(tmp_path):
    source = opened(tmp_path / "a.csv", b"text\n")
    rng = random.Random(0)
    for _ in range(3000):
        symbols = rng.choices(["a", '"', '"', ",", '","', " ", "\r", "é"], k=rng.randrange(1, 12))
        line = ("".join(symbols) + rng.choice(["\n", "\r\n", ""])).encode()
        quick = source._quick(line)
        raw, fields = quoted_fields(line, Lines(lambda: b""), b",", 100)
        if quick is not None:
            assert raw == line
            assert [source._value(field) for field in fields] == quick
        elif b"\r" not in split_ending(line)[0]:
            assert isinstance(fields, str)


def test_unquoted_tsv_keeps_its_quotes_and_its_rows(tmp_path):
    rows = [
        ('"Yes," he said.', "He said yes."),
        ("He said:", '"Yes'),
        ('"Well, I never', 'He said "yes"'),
        ('said "yes"', '5" of snow'),
        ("it's 5\"", '"'),
        ('""', 'a"b'),
        ("x", '"Well'),
        ("y", 'it is 5"'),
    ] * 3
    content = "".join(f"{a}\t{b}\n" for a, b in [("premise", "hypothesis"), *rows]).encode()
    source = opened(tmp_path / "a.tsv", content, PAIR)
    assert problems(source) == [None] * len(rows)
    assert texts(source) == [a if a != '""' else "" for a, _ in rows]
    assert texts(source, 1) == [b for _, b in rows]


def test_one_column_of_tsv_is_a_line_a_row(tmp_path):
    source = opened(tmp_path / "a.tsv", b'text\n"a\nb"\n"c"\n')
    assert texts(source) == ['"a', 'b"', "c"]


def test_tsv_fields_that_are_too_few_or_too_many(tmp_path):
    content = b'premise\thypothesis\na\tb\n"one\ntwo\tthree\tfour\na\t"two\nlines"\n"x\t\ty\nx"\tz\n'
    source = opened(tmp_path / "a.tsv", content, PAIR)
    found = [(row["text_0"], row["text_1"], row["problem"]) for row in read(source)]
    assert found == [
        ("a", "b", None),
        (None, None, "1 fields instead of 2"),
        (None, None, "3 fields instead of 2"),
        ("a", "two\nlines", None),
        ("x\t\ty\nx", "z", None),
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_by_position(tmp_path, suffix):
    delimiter = {"csv": b",", "tsv": b"\t"}[suffix]
    content = b"".join(delimiter.join(row) + b"\n" for row in ([b"a", b"b", b"en"], [b"c", b"d", b"de"]))
    source = opened(tmp_path / f"a.{suffix}", content, Columns(("0", "1"), ("2",)))
    assert [(row["text_0"], row["text_1"], row["expected_0"]) for row in read(source)] == [
        ("a", "b", "en"),
        ("c", "d", "de"),
    ]
    assert kept_bytes(source, [False, True], tmp_path / "kept")[0] == content.split(b"\n")[1] + b"\n"
    assert not source.can_add_columns
    with pytest.raises(ValueError, match=r"no columns can be added to it, and \['new'\]"):
        kept_bytes(source, [True, True], tmp_path / "kept", lambda record: {"new": 1})
    with pytest.raises(ValueError, match=r"no text column '7'; its columns are \['0', '1', '2'\]"):
        opened(tmp_path / f"b.{suffix}", content, Columns(("0", "7")))


def test_columns_that_are_named_by_numbers(tmp_path):
    assert texts(opened(tmp_path / "a.csv", b"1,0\na,b\n", POSITIONS)) == ["b"]


@pytest.mark.skipif(not (DATA / "xnli").is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)")
@pytest.mark.parametrize("language", ["en", "ur", "zh"])
def test_xnli_as_it_is_published(language):
    path = DATA / "xnli" / f"dev-{language}.tsv"
    source = opened(path, None, POSITIONS)
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    found = read(source)
    assert len(found) == len(rows) == 2490
    for i in range(2):
        wrong = [
            (row[i], ours[f"text_{i}"])
            for row, ours in zip(rows, found, strict=True)
            if row[i] != ours[f"text_{i}"] and row[i][1:-1] != ours[f"text_{i}"]  # quoted as a whole
        ]
        assert wrong == []


@pytest.mark.parametrize(
    ("name", "other", "advice"),
    [
        ("a.csv", ";", "convert it: csvformat -d ';' FILE > NEW.csv"),
        ("a.csv", "|", "convert it: csvformat -d '|' FILE > NEW.csv"),
        ("a.csv", "\t", "name it .tsv"),
        ("a.tsv", ",", "name it .csv"),
    ],
)
def test_another_delimiter_is_named(tmp_path, name, other, advice):
    content = f'id{other}"text"\n1{other}one, two\n'.encode()
    with pytest.raises(ValueError, match=re.escape(f"this file looks split at {other!r}: {advice}")):
        opened(tmp_path / name, content)
    with pytest.raises(ValueError, match=r"no text column 'text'; its columns are \['id', 'body'\]$"):
        opened(tmp_path / "b.csv", b"id,body\n1,one\n")


def test_of_many_columns_some_are_listed(tmp_path):
    header = ",".join(f"{i}" + "x" * 1000 for i in range(1000))
    with pytest.raises(ValueError, match=r"no text column 'text'; its columns are .* and 980 more$") as error:
        opened(tmp_path / "a.csv", f"{header}\n".encode())
    assert len(str(error.value)) < 2000
