"""What can be named as an input, and what is said of what cannot, before any work."""

import datasets
import pytest

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources import open_sources
from tests.governance.sources.support import COMPRESS, PAIR, TEXT, opened, texts

LINE = b'{"text": "a"}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in (
        "b.jsonl",
        "a.txt",
        "sub/c.csv",
        "sub/deeper/b.jsonl.gz",
        "README.md",
        ".hidden.txt",
        ".git/x.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"csv": b"text\na\n", "gz": COMPRESS[".gz"](LINE)}.get(name.rsplit(".")[-1], LINE)
        path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs, columns=TEXT, **options):
    return [source.name for source in open_sources(list(inputs), columns, **options)]


def test_a_folder_is_its_data_files_sorted(folder):
    files = ["a.txt", "b.jsonl", "sub/c.csv", "sub/deeper/b.jsonl.gz"]
    assert names(".") == files
    assert names(folder) == [str(folder / name) for name in files]
    assert names("sub", "a.txt") == ["sub/c.csv", "sub/deeper/b.jsonl.gz", "a.txt"]


def test_globs(folder):
    assert names("**/b.*") == ["b.jsonl", "sub/deeper/b.jsonl.gz"]
    assert names("s?b/*") == ["sub/c.csv"]
    assert names(str(folder / "[ab].*")) == [str(folder / "a.txt"), str(folder / "b.jsonl")]
    (folder / "x[1].txt").write_bytes(b"a\n")
    assert names("x[1].txt") == ["x[1].txt"]


def test_formats_and_output_names(folder):
    sources = open_sources(["b.jsonl", "sub", "a.txt"], TEXT)
    assert [source.format for source in sources] == ["jsonl", "csv", "jsonl", "text"]
    assert [source.output_name for source in sources] == ["b.jsonl", "c.csv", "b.jsonl.gz", "a.txt"]


def test_output_names_are_unique(tmp_path):
    files = ["x/en/train.jsonl", "y/en/train.jsonl", "y/de/Train.jsonl", "en-train.jsonl", "dev.jsonl"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    found = [source.output_name for source in open_sources([tmp_path / name for name in files], TEXT)]
    assert found[:3] == ["x-en-train.jsonl", "y-en-train.jsonl", "de-Train.jsonl"]
    assert found[3:] == ["en-train.jsonl", "dev.jsonl"] or found[3].endswith("-en-train.jsonl")
    assert len({name.casefold() for name in found}) == len(files)


def test_output_names_that_differ_in_case_alone(tmp_path):
    for name in ("a/x.txt", "b/X.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(LINE)
    assert [source.output_name for source in open_sources([tmp_path], TEXT)] == ["a-x.txt", "b-X.txt"]


@pytest.mark.parametrize("suffix", [".ndjson", ".json", ".JSONL", ".jsonl.GZ"])
def test_other_suffixes(tmp_path, suffix):
    content = COMPRESS[".gz"](LINE) if suffix.endswith("GZ") else LINE
    assert texts(opened(tmp_path / f"a{suffix}", content)) == ["a"]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], ValueError, "inputs is empty"),
        ("a.txt", TypeError, "inputs must be a list .* got str"),
        (["none.jsonl"], FileNotFoundError, "no such file: none.jsonl"),
        (["*.parquet"], ValueError, r"no file matches '\*\.parquet'"),
        (
            ["README.md"],
            ValueError,
            r"README\.md has an unknown suffix '\.md'; known are \.jsonl .*\.zst, and \.parquet",
        ),
        (["a.txt", "sub/../a.txt"], ValueError, "sub/../a.txt is there twice, as a.txt too"),
        (["sub", "**/*.gz"], ValueError, "b.jsonl.gz is there twice"),
        (["empty"], ValueError, "folder empty has no data file. Data files end in"),
        ([".git/.."], ValueError, "no text column 'other'"),
        (
            [7],
            TypeError,
            r"inputs\[0\] must be a path, a datasets.Dataset or a list of dictionaries, got int",
        ),
        ([{"text": "a"}], TypeError, "put the list of rows into a list"),
        ([datasets.DatasetDict()], TypeError, "choose one of its splits"),
        ([[]], ValueError, "dataset has no rows"),
        ([["a"]], TypeError, "row 0 is no dictionary but str"),
        ([None], TypeError, "got NoneType"),
        (["hub:a/b/c/d"], ValueError, "names no data set"),
        (["hub:"], ValueError, "names no data set"),
    ],
)
def test_errors(folder, inputs, error, message):
    (folder / "empty").mkdir()
    with pytest.raises(error, match=message):
        open_sources(inputs, Columns(("other",)) if inputs == [".git/.."] else TEXT)


def test_files_that_cannot_be_read(folder):
    for name in ("a.jsonl.gz", "a.txt.bz2", "a.csv.xz", "a.txt.zst", "a.parquet"):
        with pytest.raises(OSError, match=f"{name} cannot be read"):
            opened(folder / name, b"nothing of the kind, nothing at all")
    with pytest.raises(ValueError, match="one JSON array, not an object a line"):
        opened(folder / "a.json", b'\n[\n{"text": "a"}]')


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"b,text,c\n"),
        ("a.tsv", b"b\ttext\tc\n"),
        ("a.jsonl", b'{"b": 1}\n!\n{"text": "", "c": 1}\n'),
    ],
)
def test_missing_columns_are_named(tmp_path, name, content):
    for columns, use in (
        (Columns(("tex",)), "text column 'tex'"),
        (Columns(("text",), ("lang",)), "column of the expected language 'lang'"),
        (Columns(("text",), (), "key"), "id column 'key'"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: no {use}; its columns are \['b', 'text', 'c'\]"):
            opened(tmp_path / name, content, columns)
    # Of rows to compare with, the text is enough.
    source = opened(tmp_path / name, content, Columns(("text",), ("lang",), "key"), evaluation=True)
    assert source.evaluation
    assert [row["id"] for table, _ in source.batches() for row in table.to_pylist()] in ([], [None] * 3)


def test_a_column_that_is_there_twice(tmp_path):
    with pytest.raises(ValueError, match="text column 'text' is there 2 times"):
        opened(tmp_path / "a.csv", b"text,text\na,b\n")
    source = opened(tmp_path / "b.csv", b"text,x,x,\na,1,2,3\n")
    assert next(source.records(pytest.importorskip("numpy").array([0])))[1] == {
        "text": "a",
        "x": "1",
        "x_2": "2",
        "": "3",
    }


def test_text_files_have_one_column(tmp_path):
    with pytest.raises(
        ValueError, match=r"a text file has one column, and \['premise', 'hypothesis'\] are asked for"
    ):
        opened(tmp_path / "a.txt", b"a\n", PAIR)
    with pytest.raises(ValueError, match="no column of the expected language 'lang'"):
        opened(tmp_path / "a.txt", b"a\n", Columns(("text",), ("lang",)))


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-32-be", "utf-7", "hz", "iso2022_jp", "cp037", "hex", "none", "idna"]
)
def test_encodings_that_cannot_be_read(tmp_path, encoding):
    with pytest.raises(ValueError, match=f"encoding '{encoding}' (cannot be read|is unknown)"):
        opened(tmp_path / "a.txt", b"a\n", encoding=encoding)


def test_data_sets_of_the_hub(monkeypatch):
    asked = []
    rows = datasets.Dataset.from_list([{"text": "a"}])

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == "gone":
            raise ConnectionError("no network")
        return (
            rows
            if split
            else datasets.DatasetDict({"train": rows} if config else {"train": rows, "test": rows})
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sources = open_sources(["hub:facebook/xnli/sw:test", "hub:imdb:train[:10%]", "hub:a/b/c"], TEXT)
    assert asked == [("facebook/xnli", "sw", "test"), ("imdb", None, "train[:10%]"), ("a/b", "c", None)]
    assert [source.name for source in sources] == [
        "hub:facebook/xnli/sw:test",
        "hub:imdb:train[:10%]",
        "hub:a/b/c",
    ]
    assert [source.output_name for source in sources] == [
        "facebook-xnli-sw-test.parquet",
        "imdb-train--10.parquet",
        "a-b-c.parquet",
    ]
    assert [texts(source) for source in sources] == [["a"]] * 3
    with pytest.raises(
        ValueError, match=r"hub:a/b has the splits \['train', 'test'\]; choose one: hub:a/b:train"
    ):
        open_sources(["hub:a/b"], TEXT)
    with pytest.raises(OSError, match="hub:gone could not be loaded: no network"):
        open_sources(["hub:gone"], TEXT)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv.gz"])
def test_lines_that_end_in_a_carriage_return_alone_are_refused(tmp_path, name):
    content = b'text\r{"text": "one"}\r{"text": "two"}\r'
    with pytest.raises(ValueError, match=rf"{name} has lines that end in a carriage return alone.* tr "):
        opened(tmp_path / name, COMPRESS[".gz" if name.endswith(".gz") else ""](content))
