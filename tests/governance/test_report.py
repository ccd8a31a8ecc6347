"""The report says what the summary says, shows texts as text, and needs nothing but itself."""

import re
import sys
import types

import numpy as np
import pytest

from hybrid_kernels.governance import histogram, manifest, report
from hybrid_kernels.governance.batch import Batch, Columns, Objection, Range
from hybrid_kernels.governance.policy import GovernancePolicy, LeakagePolicy, QualityPolicy
from hybrid_kernels.governance.summary import EXCERPT, Other, Tally
from tests.pages import Page

COLUMNS = Columns(("premise", "hypothesis"), ("language",))
HOSTILE = "<script>alert('x')</script> & \"<b>\""
ARABIC = "هذا نص باللغة العربية"


def objection(step, reason, rows, *, rejects=True, score=0.7, detail="because"):
    rows = np.array(rows, np.int64)
    values = np.full(len(rows), score)
    return Objection(step, reason, "premise", rows, values, values - 0.2, [detail] * len(rows), rejects)


def tally(*objections, texts=None, others=None):
    texts = texts or ["row"] * 20
    counts = Tally()
    batch = Batch((texts, texts), (["sw"] * len(texts),) * 2, COLUMNS, ("en", "sw"))
    languages = ["en", "sw"] * (len(texts) // 2)
    counts.add(batch, objections, languages, source="train.jsonl", first=0, others=others)
    return counts


def made(summary, **changes):
    arguments = {
        "inputs": [
            {
                "name": "train.jsonl",
                "format": "jsonl",
                "bytes": 5,
                "sha256": "ab" * 32,
                "rows": summary["rows"],
            }
        ],
        "outputs": [{"name": "rejected.jsonl", "bytes": 7, "sha256": "cd" * 32, "rows": summary["rejected"]}],
        "columns": COLUMNS,
        "languages": ["en", "sw"],
        "policy": GovernancePolicy(),
        "counts": {key: summary[key] for key in ("rows", "kept", "rejected")},
        "run": manifest.Run("local", 2, 3.0),
    }
    return manifest.manifest(**arguments | changes)


def page(*objections, what_if=None, changes=None, counts=None, **options):
    counts = counts or tally(*objections, **options)
    summary = counts.to_json(["en", "sw"], ["quality", "language"])
    return Page(report.page(summary, None, {}, what_if, made(summary, **(changes or {}))))


def words(text):
    return " ".join(text.split())


def test_the_outcome_and_the_flow_are_the_summary():
    found = page(
        objection("quality", "too short", [0, 1, 2]),
        objection("language", "another language", [2, 3]),
        objection("language", "code-switched", [5, 0], rejects=False),
    )
    sentence = "Of 20 rows 16 are kept (80 %) and 4 rejected: 3 by quality and 1 by language."
    sentence += " Of the kept ones 1 are flagged."
    assert sentence in words(found.text)
    assert [words(cell) for cell in found.row("quality", 6)] == ["quality", "20", "315 %", "17", "3", "2"]
    assert [words(cell) for cell in found.row("language", 6)] == ["language", "17", "15.88 %", "16", "2", "1"]
    assert [words(cell) for cell in found.row("en", 6)] == ["en", "10", "8", "220 %", "quality 20 %", "0"]
    assert [words(cell) for cell in found.row("sw", 6)][:3] == ["sw", "10", "8"]
    assert "too short: 3 rows, 2 for this reason alone" in words(found.text)
    assert "code-switched: 1 row" in words(found.text)


def test_the_bars_are_as_long_as_the_shares():
    found = page(objection("quality", "too short", [0, 2]), objection("language", "another language", [4]))
    styles = [
        attributes["style"] for tag, attributes in found.elements if tag == "i" and "style" in attributes
    ]
    assert styles == ["width:20.000%", "width:10.000%"]


def test_texts_are_text_whatever_they_hold():
    texts = [HOSTILE, ARABIC] + ["row"] * 18
    other = Other(HOSTILE, 3, (HOSTILE, "row"), HOSTILE)
    found = page(
        objection("quality", HOSTILE, [0, 1], detail=HOSTILE),
        objection("duplicates", "near duplicate", [0], detail=HOSTILE),
        texts=texts,
        others={0: other},
    )
    assert {tag for tag, _ in found.elements} & {"script", "b"} == set()
    assert found.text.count(HOSTILE) >= 8
    samples = [attributes for tag, attributes in found.elements if attributes.get("class") == "sample"]
    assert samples and all(attributes["dir"] == "auto" and attributes["lang"] for attributes in samples)
    assert ARABIC in found.text


def test_long_texts_are_cut():
    found = page(objection("quality", "too long", [0]), texts=["x" * 100_000] + ["row"] * 19)
    assert "x" * (EXCERPT - 1) + "…" in found.text and "x" * EXCERPT not in found.text


def test_the_page_needs_nothing_but_itself():
    summary = tally(objection("quality", "too short", [0])).to_json()
    text = report.page(summary, None, {}, None, made(summary))
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    targets = {attributes["id"] for _, attributes in Page(text).elements if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in Page(text).elements if tag == "a"}
    assert links and links <= targets


def test_settings_that_differ_from_the_default_are_marked():
    policy = GovernancePolicy(quality=QualityPolicy(max_digits=0.4), leakage=LeakagePolicy(enabled=False))
    found = page(changes={"policy": policy})
    marked = [
        attributes
        for tag, attributes in found.elements
        if tag == "tr" and attributes.get("class") == "changed"
    ]
    assert len(marked) == 4  # two, in the short table and in the whole one
    assert found.row("quality.max_digits", 4)[1:3] == ["0.4 changed", "0.5"]
    assert found.row("quality.max_symbols", 4)[1:3] == ["0.5", "0.5"]
    assert found.row("leakage.enabled", 4)[1:] == ["no changed", "yes", "whether this step runs"]
    assert re.search(r"2 of \d+ settings of the policy differ from the default", words(found.text))
    assert "leakage" in words(found.text).split("Steps off")[1].split("Seed")[0]
    assert re.search(r"All \d+ settings of the policy have their default", words(page().text))


def test_duplicates_stand_beside_the_row_they_repeat():
    counts = tally(
        objection("duplicates", "near duplicate", [2], score=0.86),
        texts=["row"] * 2 + ["the cat sat"] + ["row"] * 17,
        others={2: Other("more.jsonl", 1234, ("the dog sat", "the cat sat"))},
    )
    counts.add_groups([2, 2, 7])
    found = page(counts=counts)
    (row,) = [row for row in found.rows if len(row) == 3 and "the dog sat" in row[1]]
    assert "the cat sat" in row[0] and "more.jsonl, record 1,234" in row[1] and row[2] == "0.86"
    assert [row for row in found.rows if row[0] in ("2", "5 to 9")] == [["2", "2", "2"], ["5 to 9", "1", "6"]]


@pytest.mark.parametrize(
    ("first", "second", "marked"),
    [
        ("the cat sat", "the dog sat", ["cat", "dog"]),
        ("这是城市生活", "这是乡村生活", ["城市", "乡村"]),
        ("same", "same", []),
        ("", "all <new>", ["all &lt;new&gt;"]),
    ],
)
def test_what_only_one_row_has_is_marked(first, second, marked):
    sides = report._marked(first, second)
    assert re.findall("<mark>(.*?)</mark>", "|".join(sides)) == marked
    assert [
        re.sub("</?mark>", "", str(side)).replace("&lt;", "<").replace("&gt;", ">") for side in sides
    ] == [
        first,
        second,
    ]


def test_leaked_rows_are_listed_with_the_evaluation_row():
    found = page(
        objection("leakage", "in the evaluation data", [3], score=1.0),
        others={3: Other("xnli/dev-sw.tsv", 12, ("row", "row"), "dev-12")},
        changes={
            "evaluation": [
                {"name": "xnli/dev-sw.tsv", "format": "tsv", "bytes": 1, "sha256": "e" * 64, "rows": 9}
            ]
        },
    )
    assert "1 row repeated a row of the evaluation data." in words(found.text)
    assert "the evaluation data: 1 of xnli/dev-sw.tsv." in words(found.text)
    assert any("xnli/dev-sw.tsv, dev-12" in cell for row in found.rows for cell in row)


def line(value, **changes):
    values = {"field": "quality.max_digits", "value": value, "in_force": False, "rejected": 5}
    values |= {"newly_rejected": 0, "newly_kept": 0, "worst": None, "reasons": {}}
    return values | changes


def test_the_table_of_other_thresholds():
    table = {"rows": 20, "of_rows": 20, "rejected": 5, "duplicates": []}
    lines = [
        line(
            0.2,
            newly_rejected=3,
            worst={"language": "sw", "rows": 2, "change": 0.4},
            reasons={"quality: too many digits": {"rows": 7, "alone": 6}},
        ),
        line(0.5, in_force=True),
    ]
    found = page(what_if=table | {"lines": lines})
    row = [words(cell) for cell in found.row("quality.max_digits", 7)]
    assert row == [
        "quality.max_digits", "0.2", "quality: too many digits 7, alone 6", "5", "+3", "",
        "sw, 2 more rejected40 % of its rows",
    ]  # fmt: skip
    assert next(row for row in found.rows if len(row) == 7 and "in force" in row[1])[1] == "0.5in force"
    assert "All 20 rows were judged again." in words(found.text)


def test_a_sample_is_called_one():
    table = {"rows": 10, "of_rows": 20, "rejected": 5, "lines": [line(0.2), line(0.5, in_force=True)]}
    table["duplicates"] = [{"threshold": 0.9, "in_force": False, "at_least": 7, "at_most": 9}]
    found = page(what_if=table)
    sentence = "This is a sample: 10 of 20 rows at even distances."
    assert sentence in words(found.text)
    assert not any(len(row) == 7 and row[0].startswith("quality") for row in found.rows)
    assert "No difference: quality.max_digits 0.2, 0.5 (in force)." in words(found.text)
    assert [words(cell) for cell in found.row("0.9", 2)] == ["0.9", "7 to 9"]


def test_a_result_can_be_made_again_from_its_report():
    found = page()
    assert "hybrid-kernels govern train.jsonl \\ --languages en,sw \\ --text premise,hypothesis" in words(
        found.text
    )
    assert found.row("train.jsonl", 4)[1:] == ["20", "5", "ab" * 32]
    assert found.row("rejected.jsonl", 4)[3] == "cd" * 32
    assert "py3langid" in found.text
    assert "--policy RESULT/policy.yaml" in found.text and "govern-check RESULT" in found.text
    dry = page(changes={"outputs": []}).text
    assert "dry run: no rows were written" in dry and "govern-check" not in dry


def test_ids_of_several_rows_are_named():
    summary = tally().to_json() | {"duplicate_ids": {"ids": 3, "rows": 7, "first": ["<a>", "b"]}}
    columns = Columns(("premise", "hypothesis"), id="uid")
    text = words(Page(report.page(summary, None, {}, None, made(summary, columns=columns))).text)
    assert "3 ids in the column uid stand for 7 rows together: <a>, b, …" in text


def test_no_rows_are_said_to_be_none():
    summary = Tally().to_json(["en"], ["quality"])
    text = Page(report.page(summary, None, {}, None, made(summary))).text
    assert "There were no rows." in text and "No row was rejected." in text


def test_the_report_is_a_file_of_the_result(tmp_path):
    summary = tally().to_json()
    path = report.write_report(tmp_path, summary, None, {}, None, made(summary))
    assert path == tmp_path / "report.html" and path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(tmp_path) not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "–"),
        (0, 9, "0 %"),
        (1, 10**6, "< 0.01 %"),
        (999_999, 10**6, "> 99.99 %"),
        (1, 8, "12.5 %"),
        (5, 5, "100 %"),
    ],
)
def test_shares_are_never_rounded_to_nothing_or_all(part, whole, text):
    assert report.share(part, whole) == text


EDGES = np.linspace(0, 1, 11)


def drawing(bounds, **counts):
    counts = {code: np.array(found) for code, found in counts.items()}
    return histogram.draw("digits", "Share of digits", EDGES, counts, bounds)


def test_a_drawing_has_bars_where_rows_are_and_bounds_where_they_lie():
    found = drawing(
        {"en": Range(high=0.5), "sw": Range(0.1, 0.25)}, en=[8, 0, 0, 1, 0, 0, 0, 0, 0, 1], sw=[0] * 9 + [3]
    )
    assert [bar.x for bar in found.bars] == [0, 3 * 56, 9 * 56]
    assert found.bars[0].height == 1 > found.bars[2].height > found.bars[1].height > 0
    assert found.rows == 13
    en, sw = found.strips
    assert (en.low, en.high, en.bounds) == (None, pytest.approx(280), "at most 0.5")
    assert (sw.low, sw.high, sw.bounds) == (pytest.approx(56), pytest.approx(140), "0.1 to 0.25")
    assert [(bar.x, bar.shade) for bar in en.bars] == [(0, 5), (168, 2), (504, 2)]
    assert found.shared == []


def test_bins_of_one_shade_are_one_rectangle_and_bounds_of_all_go_through_all():
    found = drawing({code: Range(high=0.3) for code in ("en", "sw")}, en=[4] * 10, sw=[4] * 10)
    assert [(bar.x, bar.width, bar.shade) for bar in found.strips[0].bars] == [(0, 560, 5)]
    assert found.shared == [pytest.approx(168)]
    assert [text for _, text in found.ticks][::5] == ["0", "0.5", "1"]


def test_narrow_bins_are_drawn_together_and_bounds_where_they_were():
    edges, counts = np.linspace(0, 1, 201), np.ones(200, int)
    found = histogram.draw("digits", "Share", edges, {"en": counts}, {"en": Range(high=0.503)})
    assert len(found.bars) == 50 and found.bars[0].title == "0 to 0.02: 4 rows" and found.rows == 200
    assert sum(bar.width for bar in found.bars) == pytest.approx(histogram.WIDTH)
    assert found.shared == [pytest.approx(0.503 * histogram.WIDTH)]
    odd = histogram.draw("digits", "Share", np.linspace(0, 1, 98), {"en": np.ones(97, int)}, {})
    assert [bar.title for bar in odd.bars][-1] == "0.99 to 1: 1 rows"


def test_the_fullest_bin_has_the_darkest_shade_whatever_its_count():
    shades = {drawing({}, en=[n] + [0] * 9).strips[0].bars[0].shade for n in range(1, 300)}
    assert shades == {5}


def test_a_bound_beyond_the_drawing_is_written_not_drawn():
    (strip,) = drawing({"en": Range(high=7.0)}, en=[1] * 10).strips
    assert (strip.high, strip.bounds) == (None, "at most 7")


def test_every_feature_that_rows_have_is_drawn(monkeypatch):
    feature = types.SimpleNamespace(label="Share of <digits>", edges=EDGES)
    module = types.ModuleType("thresholds")
    module.FEATURES = {"digits": feature, "none": feature}
    monkeypatch.setitem(sys.modules, "hybrid_kernels.governance.thresholds", module)
    counts = {
        ("digits", "en"): np.arange(10),
        ("digits", "sw"): np.arange(10),
        ("none", "en"): np.zeros(10, int),
    }
    summary = tally().to_json()
    bounds = {("digits", None): Range(high=0.5), ("digits", "sw"): Range(high=0.8)}
    text = report.page(summary, types.SimpleNamespace(counts=counts), bounds, None, made(summary))
    found = Page(text)
    assert [tag for tag, _ in found.elements].count("svg") == 1
    assert "Share of <digits>, 90 values" in words(found.text)
    assert "at most 0.5" in found.text and "at most 0.8" in found.text
    assert text.count('class="bound"') == 2


def test_a_drawing_is_named_after_its_column():
    counts = {(f"digits_{i}", "en"): np.eye(60, dtype=int)[i] for i in range(2)}
    text = report.page(
        tally().to_json(), types.SimpleNamespace(counts=counts), {}, None, made(tally().to_json())
    )
    found = words(Page(text).text)
    assert "share of digits, premise, 1 values" in found and "share of digits, hypothesis, 1 values" in found
