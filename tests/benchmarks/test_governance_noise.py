"""The planted noise is what it says, and the benchmark counts it right. On text made up here; no data is needed."""

import importlib
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("psutil")
pytest.importorskip("pyarrow")

from hybrid_kernels.governance.text import normalise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LANGUAGES = ("en", "hi", "ru", "zh")
LETTERS = {
    "en": "abcdefghijklmnopqrstuvwxyz",
    "hi": "".join(map(chr, range(0x915, 0x939))) + "ािीुू",
    "ru": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "zh": "".join(map(chr, range(0x4E00, 0x4F00))),
    "zh-Hant": "".join(map(chr, range(0x4F00, 0x5000))),
}


@pytest.fixture(scope="module")
def modules():
    names = ("noise", "spoiling", "runs", "decisions", "cost")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        loaded = {name: importlib.import_module(f"governance_{name}") for name in names}
        yield {**loaded, "main": importlib.import_module("governance")}


@pytest.fixture(scope="module")
def noise(modules):
    return modules["noise"]


@pytest.fixture(scope="module")
def spoiling(modules):
    return modules["spoiling"]


def sentence(language, draw, words):
    letters = LETTERS[language]
    made = ["".join(draw.choices(letters, k=draw.randint(4, 9))) for _ in range(words)]
    return "".join(made) + "。" if language.startswith("zh") else " ".join(made) + "é."


@pytest.fixture(scope="module")
def data(tmp_path_factory, spoiling):
    """A folder as that of the real text, of random words."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)

    def write(path, lines):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    for language in LANGUAGES:
        texts = [sentence(language, draw, 15) for _ in range(420)]
        write(f"ntrex/ntrex.{language}.txt", texts[:200])
        write(f"flores200_dataset/dev/{spoiling.FLORES[language]}.dev", texts[200:300])
        write(f"xnli/dev-{language}.tsv", [f"premise\t{text}\tneutral" for text in texts[300:]])
    latin = [f"p\t{sentence('en', draw, 9)}\tneutral" for _ in range(20)]
    latin += [f"p\t{sentence('en', draw, 9)} {sentence('hi', draw, 2)}\tneutral" for _ in range(5)]
    with (folder / "xnli" / "dev-hi.tsv").open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in latin))
    # Some sentences are the same in Simplified and Traditional characters, some Hindi hypotheses have Latin names.
    write(
        "ntrex/ntrex.zh-TW.txt", [sentence(code, draw, 12) for code in ("zh", "zh-Hant") for _ in range(20)]
    )
    for language in ("hi", "ru", "zh"):
        for code in ("en", language):
            texts = [sentence(code, draw, 6) for _ in range(40)]
            write(f"tatoeba/en-{language}.{code}", texts)
    return folder


@pytest.fixture(scope="module")
def corpus(data, noise):
    return noise.Corpus(data, LANGUAGES)


@pytest.fixture(scope="module")
def planted(corpus, noise):
    return noise.plant(corpus, 10, seed=0)


def test_similarities_by_hand(spoiling):
    assert spoiling.jaccard("a bcd", "ABCE!") == 1 / 3  # abc, bcd; abc, bce
    assert spoiling.jaccard("中文字", "中文子") == 1 / 3  # by pairs of ideographs
    assert spoiling.jaccard("a", "b") == 0.0 and spoiling.jaccard("ａ", "A") == 1.0


def test_normalisation_is_the_products(spoiling, corpus):
    texts = [text for part in (corpus.ntrex, corpus.flores) for texts in part.values() for text in texts]
    texts += ["Straße ﬁn «x» – ＡＢＣ １２", "ΣΊΣΥΦΟΣ…", "के लिए, १२।", "ٱلْعَرَبِيَّة\u200f؟"]
    assert all(spoiling.normal(text) == normalise(text) for text in texts)


def test_copies_are_as_similar_as_they_say(spoiling, corpus):
    draw = random.Random(1)
    similarities = []
    for text in corpus.ntrex["ru"][:60]:
        copy, edits, similarity = spoiling.similar(text, draw)
        assert 0.01 <= edits <= 0.1 and similarity == spoiling.jaccard(text, copy) < 1
        similarities.append(similarity)
    assert min(similarities) < 0.7 and max(similarities) > 0.85  # both sides of the threshold


def test_exact_copies_differ_only_for_the_eye(spoiling):
    draw = random.Random(0)
    texts = ["The board met – twice.", "这是一个句子。", "यह एक वाक्य है।", "Straße, yıl"]
    made = Counter()
    for text in texts * 60:
        copy, how = spoiling.same(text, draw)
        assert spoiling.normal(copy) == spoiling.normal(text) and (copy == text) == (how == "verbatim")
        made[how] += 1
    assert set(made) == {"verbatim", "case", "punctuation", "width", "spaces"}


def test_mojibake_is_the_same_bytes_read_wrongly(spoiling):
    draw = random.Random(0)
    for text in ("Café à la carte", "Привет, Россия", "भाषा", "中文字符"):
        for _ in range(6):
            wrong, encoding = spoiling.misread(text, draw)
            back = b"".join(
                c.encode("latin-1") if ord(c) < 256 else c.encode("cp1252") for c in wrong
            )  # what cp1252 has not is left as latin-1 has it
            assert wrong != text and back == text.encode("utf-8") and encoding in ("latin-1", "cp1252")
    assert spoiling.misread("plain", draw)[0] == ""


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("ru", "Щука и ёж.", "shchuka i yozh."),
        ("el", "Οι άνθρωποι", "oi anthropoi"),
        ("hi", "यह भाषा है।", "yah bhaashaa hai."),
        ("ar", "كتاب", "ktab"),
        ("ur", "کتاب پڑھی", "ktab prhy"),
    ],
)
def test_romanisation(spoiling, language, text, expected):
    assert spoiling.romanised(text, language) == expected


def test_truncation_is_within_a_word(spoiling):
    draw = random.Random(0)
    text = "These are several words of a sentence that ends here."
    for _ in range(50):
        part = spoiling.cut(text, "en", draw)
        assert text.startswith(part) and part[-1].isalpha() and text[len(part)].isalpha()
        assert len(part) <= 0.8 * len(text)
    assert 2 < len(spoiling.cut("这是一个比较长的句子没有空格", "zh", draw)) < 12


def test_every_kind_is_planted_in_every_language(planted):
    rows, evaluation = planted
    everywhere = {
        "language swap",
        "boilerplate",
        "markup",
        "truncated",
        "personal data",
        "keyboard mash",
        "clean",
    }
    everywhere |= {"exact duplicate", "near-duplicate", "leaked, exact", "leaked, edited", "mojibake"}
    for language in LANGUAGES:
        counts = Counter(row.kind for row in rows if row.language == language)
        assert all(counts[kind] >= 10 for kind in everywhere), (language, counts)
    assert {row.language for row in rows if row.kind == "romanised"} == {"hi", "ru"}
    assert {row.variant for row in rows if row.kind == "romanised"} == {"real", "transliterated"}
    assert {row.language for row in rows if row.kind == "wrong script"} == {"zh"}
    assert Counter(row.language for row in evaluation) == dict.fromkeys(LANGUAGES, 40)


def test_the_truth_of_planted_rows(planted, spoiling):
    rows, evaluation = planted
    by_id = {row.id: row for row in (*rows, *evaluation)}
    assert len(by_id) == len(rows) + len(evaluation)
    for row in rows:
        assert set(row.record()) == {"id", "text", "language"}  # the truth is not shown
        copied = row.kind in ("exact duplicate", "near-duplicate", "leaked, exact", "leaked, edited")
        assert (row.partner is not None) == copied
        if copied:
            partner = by_id[row.partner]
            assert partner.kind == ("evaluation" if row.kind.startswith("leaked") else "clean")
            assert row.similarity == spoiling.jaccard(row.text, partner.text)
            assert (spoiling.normal(row.text) == spoiling.normal(partner.text)) == ("exact" in row.kind)
        if row.kind == "language swap":
            assert (
                row.source != row.language and spoiling.written_in(row.text) == spoiling.SCRIPTS[row.source]
            )
        if row.kind == "romanised":
            assert spoiling.written_in(row.text) == "LATIN"
        if row.kind == "mojibake":
            assert any(unicodedata.category(c) in ("Cc", "Sm", "So", "Ll", "Lu", "Sc") for c in row.text)


def test_nothing_else_is_a_copy(planted, spoiling):
    rows, evaluation = planted
    clean = [spoiling.normal(row.text) for row in rows if row.kind in ("clean", "near-duplicate")]
    held_out = {spoiling.normal(row.text) for row in evaluation}
    assert len(set(clean)) == len(clean) and not held_out & set(clean)
    swaps = {spoiling.normal(row.text) for row in rows if row.kind == "language swap"}
    assert not swaps & held_out


def test_the_seed_decides(corpus, noise, planted):
    assert noise.plant(corpus, 10, seed=0) == planted
    other, same = (
        {row.text for row in rows if row.kind == "clean"}
        for rows in (noise.plant(corpus, 10, 1)[0], planted[0])
    )
    assert other != same


def test_a_pool_hands_out_each_text_once(noise):
    pool = noise.Pool(["One text here.", "one TEXT here", "Another text!", "short"], random.Random(0))
    assert len(pool) == 2
    assert pool.take(1, lambda text: text.startswith("A")) == ["Another text!"]
    assert len(pool.take(5)) == 1 and pool.take(5) == []


def test_romanised_rows_are_no_clean_hypotheses(corpus):
    assert len(corpus.romanised["hi"]) == 20 and len(corpus.hypotheses["hi"]) == 120
    assert len(corpus.traditional) == 20


def test_translations(corpus, noise):
    rows = noise.translations(corpus, 4, seed=0)
    counts = Counter((row.kind, row.variant) for row in rows)
    # Five times 4 pairs of each corpus and language.
    for name in ("ntrex", "tatoeba"):
        each = {kind: counts[kind, name] for kind in ("misaligned", "copied", "sides swapped", "clean")}
        assert each == {"misaligned": 12, "copied": 12, "sides swapped": 12, "clean": 24}
    true = {
        (language, pair) for language in ("hi", "ru", "zh") for part in corpus.translations(language).values()
        for pair in part
    }  # fmt: skip
    for row in rows:
        pair = (row.text, row.other)
        assert ((row.source, pair) in true) == (row.kind == "clean")
        assert ((row.source, pair[::-1]) in true) == (row.kind == "sides swapped")
        assert (row.language, row.other_language) == ("en", row.source)
        assert (row.text == row.other) == (row.kind == "copied")


def test_recombined_sentences(corpus, noise, spoiling):
    rows = list(noise.recombined(corpus, 4000, seed=0))
    assert Counter(row.language for row in rows) == dict.fromkeys(LANGUAGES, 1000)
    copies = [i for i, row in enumerate(rows) if row.kind == "exact duplicate"]
    assert len(copies) == 80 and all(rows[i].text == rows[i - len(LANGUAGES)].text for i in copies)
    clean = [row.text for row in rows if row.kind == "clean"]
    assert len(set(clean)) == len(clean)
    some = [row.text for row in rows if row.kind == "clean" and row.language == "en"]
    similar = [spoiling.jaccard(some[0], other) for other in some[1:]]
    assert 0.2 < max(similar) < 0.8  # halves are shared, no more


def verdict(modules, *reasons, linked_to=None, languages=("en",), flags=()):
    return modules["runs"].Verdict(not reasons, languages, tuple(reasons), tuple(flags), linked_to)


def test_recall_is_counted_by_kind(modules, noise):
    rows = [
        noise.Row("a", "t", "en", "markup", "html"),
        noise.Row("b", "t", "de", "markup", "wiki"),
        noise.Row("c", "t", "de", "clean"),
        noise.Row("d", "t", "de", "exact duplicate", partner="c", similarity=1.0),
        noise.Row("e", "t", "de", "near-duplicate", partner="a", similarity=0.5),
        noise.Row("f", "t", "de", "leaked, edited", partner="x", similarity=0.9),
    ]
    verdicts = {
        "a": verdict(modules, "quality: markup", "language: wrong language"),
        "b": verdict(modules, flags=("language: code-switched",)),
        "c": verdict(modules, "duplicates: exact duplicate", linked_to="d"),
        "d": verdict(modules),
        "e": verdict(modules),
        "f": verdict(modules),
    }
    run = modules["runs"].Run(Path(), verdicts, {}, 1.0, 0, 0)
    result = modules["decisions"].recall(rows, run)
    assert set(result) == {"markup", "exact duplicate", "near-duplicate, below 0.8", "leaked, edited"}
    assert result["markup"]["rejected"] == 0.5
    assert result["markup"]["by_language"] == {"de": 0.0, "en": 1.0}
    assert result["markup"]["by_variant"] == {"html": 1.0, "wiki": 0.0}
    assert result["markup"]["reasons"] == {"quality: markup": 1, "language: wrong language": 1}
    assert result["markup"]["flags"] == {"language: code-switched": 1}
    assert result["markup"]["missed"] == [["de", "wiki", "t", None]]
    # Of two copies the one that comes later goes, the original here.
    assert result["exact duplicate"]["rejected"] == 1.0
    assert result["leaked, edited"]["rejected"] == 0.0


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(0.98, False, True), (0.97, False, False), (0.98, True, True), (0.99, True, False)],
)
def test_targets(modules, value, at_most, met):
    assert modules["runs"].Target("x", value, 0.98, at_most).met is met


def test_a_share_of_nothing_misses_its_target(modules):
    nothing = modules["decisions"].share([])
    assert not modules["runs"].Target("x", nothing, 0.98).met


@pytest.fixture
def main(modules, monkeypatch, data, tmp_path):
    """Runs the program with sections that are made up; its exit code and its file."""

    def call(value, *arguments, output=tmp_path / "result.json"):
        target = modules["runs"].Target("figure", value, 0.5)
        monkeypatch.setitem(modules["main"].SECTIONS, "clean", lambda bench: ({"rows": 3}, [target]))
        wanted = ["--data", str(data), "--wanted", ",".join(LANGUAGES), "--output", str(output)]
        code = modules["main"].main([*wanted, "--only", "clean", *arguments])
        return code, json.loads(output.read_text(encoding="utf-8"))

    return call


def test_a_missed_target_is_an_exit_code(main, capsys):
    assert main(0.4)[0] == 1
    assert "missed figure: 0.4 (≥ 0.5)" in capsys.readouterr().out
    code, written = main(0.6)
    assert code == 0 and "met    figure" in capsys.readouterr().out
    section = written["sections"]["clean"]
    assert section["targets"] == [
        {"name": "figure", "value": 0.6, "bound": 0.5, "at_most": False, "met": True}
    ]
    assert section["result"] == {"rows": 3} and set(section["options"]) == {"quick", "seed", "wanted"}
    assert {"commit", "date", "machine", "versions"} <= set(section)


def test_other_sections_of_the_file_are_kept(main, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"benchmark": "governance", "sections": {"scale": {"result": 1}}}))
    assert set(main(0.6)[1]["sections"]) == {"scale", "clean"}


@pytest.mark.parametrize("arguments", [("--only", "clear"), ("--wanted", "en,xx")])
def test_unknown_names_are_refused(modules, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        modules["main"].main([*arguments])
    assert caught.value.code == 2 and f"{arguments[1].split(',')[-1]} is none of" in capsys.readouterr().err


def test_without_text_it_says_so(modules, tmp_path):
    with pytest.raises(FileNotFoundError, match="HYBRID_KERNELS_DATA"):
        modules["main"].main(["--data", str(tmp_path), "--only", "clean"])


def test_memory_counts_the_whole_tree(modules):
    import subprocess
    import sys

    program = (
        "import subprocess, sys\n"
        "code = 'x = bytearray(60 << 20); print(1, flush=True); input()'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(1, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1) as process:
        process.stdout.readline()
        rss, _ = modules["runs"].memory(process.pid)
        process.communicate(b"\n")
    assert 60 << 20 < rss < 200 << 20
    assert modules["runs"].memory(process.pid) == (0, 0)


def test_a_section_runs_the_command(modules, corpus, tmp_path):
    bench = modules["runs"].Bench(corpus, tmp_path, LANGUAGES, quick=True, seed=0, workers=1)
    result, targets = modules["decisions"].duplicates(bench)
    assert all(target.met for target in targets), targets
    assert 0 < result["rejected"] < result["rows"] / 2 and result["wrong"] == []
    below = [part for name, part in result["recall_by_similarity"].items() if name in ("0–0.6", "0.6–0.7")]
    assert below and all(part["pairs"] and part["found"] == 0 for part in below)
