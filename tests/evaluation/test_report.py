import json
import math
import re
import subprocess
import sys

import pytest

from hybrid_kernels.chart_style import colour
from hybrid_kernels.evaluation import plots, write_report
from hybrid_kernels.evaluation.report import LANGUAGE_NAMES
from hybrid_kernels.evaluation.results import parse_results
from tests.pages import Page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> | ![x](http://evil.test/x.png) `$x_1$`\n# no"


def write(results, folder):
    path = write_report(json.loads(json.dumps(results)), folder)
    return Page(path.read_text(encoding="utf-8")), (folder / "report.md").read_text(encoding="utf-8")


def markdown_tables(text):
    """Each table as a list of rows; the separator row is checked and dropped."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, f"ragged table:\n{block}"
        assert all(re.fullmatch(r"-{2,}:?", cell.strip()) for cell in rows[1]), block
        tables.append([[cell.strip() for cell in row] for row in [rows[0], *rows[2:]]])
    return tables


def test_main_table_holds_the_numbers_given(tmp_path, results):
    page, markdown = write(results, tmp_path)
    main = markdown_tables(markdown)[0]
    assert len(main) == 1 + len(results["methods"])
    for method, line in zip(results["methods"], main[1:], strict=True):
        macro = method["evaluation"]["macro"]
        # ± by hand: independent languages of 60 rows each.
        scores = method["evaluation"]["per_language"].values()
        error = math.sqrt(sum(s["accuracy"] * (1 - s["accuracy"]) / 60 for s in scores)) / 3
        accuracy = f"{100 * macro['accuracy']:.1f} ± {100 * error:.1f}"
        expected = {
            accuracy,
            f"{100 * macro['ece']:.1f} ± {100 * error:.1f}",
            f"{macro['nll']:.3f}",
            f"{macro['brier']:.3f}",
            "0.875",
            "123,456",
            "1.50 GiB",
            "5.00 MiB",
        }
        cells = page.row(method["label"], 11)
        assert expected <= set(cells)
        assert "1.23×1.20 to 1.30" in cells
        assert line[0] == method["label"] and expected <= set(line)
        parity = method["evaluation"]["parity"]
        assert line[8].startswith(f"{100 * parity['gap']:.1f} ± ")
        assert line[8].endswith(f"(en–{parity['worst_language']})")
        assert line[9] == f"{100 * parity['std']:.1f}"


def test_each_language_has_a_row_with_each_methods_accuracy(tmp_path, results):
    page, markdown = write(results, tmp_path)
    table = {row[0]: row[1:] for row in markdown_tables(markdown)[1]}
    assert table["Language"] == ["Rows", "Method 0", "Method 1", "Method 2"]
    for code, name in {"en": "English (en)", "ar": "Arabic (ar)", "zh": "Chinese (zh)"}.items():
        accuracy = [
            f"{100 * m['evaluation']['per_language'][code]['accuracy']:.1f}" for m in results["methods"]
        ]
        assert page.row(name, 5) == [name, "60", *accuracy]
        assert table[name] == ["60", *accuracy]


@pytest.mark.parametrize("methods", [1, 2, 10])
@pytest.mark.parametrize("languages", [("en",), sorted(LANGUAGE_NAMES)])
def test_any_number_of_methods_and_languages(tmp_path, make_results, methods, languages):
    page, markdown = write(make_results(methods, languages), tmp_path)
    assert len(markdown_tables(markdown)[0]) == 1 + methods
    assert len(markdown_tables(markdown)[1]) == 1 + len(languages)
    assert sum(tag == "img" for tag, _ in page.elements) == (4 if methods > 2 else 3)


def test_page_is_self_contained_and_images_have_alternative_text(tmp_path, results):
    page, _ = write(results, tmp_path)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "video"}
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith("data:image/svg+xml;base64,"), (tag, name)
        if tag == "img":
            assert len(attributes["alt"]) > 20
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text


def test_hostile_text_is_shown_and_not_run(tmp_path, results):
    results["title"] = HOSTILE
    results["config"]["note"] = HOSTILE
    results["methods"][2]["label"] = HOSTILE
    rejection = {
        "text": HOSTILE + "\x00\ud800",
        "language": '"><b',
        "reason": HOSTILE,
        "detail": {"x": HOSTILE},
    }
    results["governance"]["examples"]["quality"] = [rejection]
    results["governance"]["by_step"]["quality"]["reasons"] = {HOSTILE: 30}
    page, markdown = write(results, tmp_path)
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and "b" not in tags
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "\x00" not in page.text

    markdown_tables(markdown)
    assert not re.search(r"(?<!\\)<", markdown)
    assert not re.search(r"(?<!\\)\[", markdown)
    assert len(re.findall(r"^# ", markdown, flags=re.MULTILINE)) == 1


def test_examples_of_rejections_keep_their_direction(tmp_path, results):
    page, _ = write(results, tmp_path)
    assert ("td", {"class": "text", "dir": "auto", "lang": "ar"}) in page.elements
    assert page.row("language", 4) == ["language", "ar", "wrong languageen 0.9", "قال إنه سيعود"]
    assert page.row("language", 3) == ["language", "70", "wrong language: 50; wrong script: 20"]
    assert page.row("Arabic (ar)", 4) == ["Arabic (ar)", "110", "100", "10"]


def test_absent_parts_are_said_to_be_absent(tmp_path, results):
    results |= {"governance": None, "commit": None}
    for method in results["methods"]:
        method |= {
            "history": [],
            "mixing_history": [],
            "step_time_ratio": None,
            "step_time_spread": None,
            "peak_memory_bytes": None,
            "adapter_bytes": None,
            "train_loss": math.nan,
        }
        method["evaluation"]["reliability"] = []
    page, markdown = write(results, tmp_path)
    for text in (page.text, markdown):
        assert "Governance was not run" in text
        assert "not finite" in text
        assert "not recorded" in text
    assert "No training history was recorded." in page.text
    assert "No reliability bins were recorded." in page.text
    assert page.row("Method 0", 11)[-3:] == ["–", "–", "–"]


def test_method_keeps_its_colour_when_another_has_nothing_to_draw(make_results):
    results = make_results(methods=2)
    results["methods"][0]["history"] = []
    results["methods"][0]["evaluation"]["reliability"] = []
    methods = parse_results(results).methods
    for svg in (plots.training_curves(methods), plots.reliability_diagrams(methods)):
        assert colour(1) in svg
        assert colour(0) not in svg


def drop(results, *path):
    *parents, last = path
    for key in parents:
        results = results[key]
    del results[last]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("title",), "title"),
        (("governance",), "governance"),
        (("machine", "cpu"), "machine.cpu"),
        (("methods", 1, "label"), "methods[1].label"),
        (("methods", 0, "evaluation", "macro", "ece"), "methods[0].evaluation.macro.ece"),
        (("methods", 0, "evaluation", "per_language", "ar", "n"), "methods[0].evaluation.per_language.ar.n"),
        (("governance", "by_step", "language", "reasons"), "governance.by_step.language.reasons"),
    ],
)
def test_missing_key_is_named_and_nothing_is_written(tmp_path, results, path, key):
    drop(results, *path)
    with pytest.raises(ValueError, match=re.escape(f"results: key '{key}' is missing")):
        write_report(results, tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["methods"][0].update(train_loss="low"), r"'methods\[0\]\.train_loss': .*, got 'low'"),
        (lambda r: r["methods"][0].update(seeds=[]), r"'methods\[0\]\.seeds'"),
        (lambda r: r["methods"][1].update(name="method0"), "distinct names"),
        (lambda r: r.update(methods=[]), "'methods'"),
        (lambda r: r["methods"][0]["evaluation"]["parity"].update(worst_language="sw"), "names 'sw'"),
        (lambda r: r["methods"][0]["evaluation"]["reliability"][14].update(accuracy=None), "count > 0"),
    ],
)
def test_malformed_value_is_named(tmp_path, results, change, message):
    change(results)
    with pytest.raises(ValueError, match=f"results: .*{message}"):
        write_report(results, tmp_path)


def test_interrupted_writing_leaves_the_previous_report(tmp_path, results, monkeypatch):
    path = write_report(results, tmp_path)
    before = path.read_bytes()
    results["title"] = "Another title"

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(results, tmp_path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_metrics_do_not_need_the_reports_libraries():
    code = "import hybrid_kernels.evaluation, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "hybrid_kernels.evaluation.metrics" in loaded
    assert not {"matplotlib", "jinja2", "pydantic", "sklearn", "transformers"} & set(loaded)
