"""The rendered report: HTML, Markdown, LaTeX."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from hybrid_kernels.evaluation import write_report
from hybrid_kernels.evaluation.report.latex import escape, latex
from hybrid_kernels.evaluation.report.view import build
from hybrid_kernels.evaluation.significance import Interval
from hybrid_kernels.evaluation.tables import Column, Row, Table, Value, load_study, quality
from tests.evaluation.runs import edit, make_run
from tests.pages import Page

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> | ![x](http://evil.test/x.png) `$x_1$`\n# no"
SECTIONS = [
    "Main results",
    "Calibration",
    "Parity",
    "Robustness",
    "Governance of the training rows",
    "Footprint",
    "Few-shot learning",
    "Cost and quality",
    "Training",
]


def headings(text, level):
    return re.findall(rf"<h{level}[^>]*>(.*?)</h{level}>", text)


def markdown_tables(text):
    """Each table as a list of rows; the separator row is checked and dropped."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, f"ragged table:\n{block}"
        assert all(re.fullmatch(r"-{2,}:?", cell.strip()) for cell in rows[1]), block
        tables.append([[cell.strip() for cell in row] for row in [rows[0], *rows[2:]]])
    return tables


def changed(folder, target, change):
    """A copy of a run with its results changed by `change`."""
    shutil.copytree(folder, target)
    content = json.loads((target / "results.json").read_text())
    change(content)
    (target / "results.json").write_text(json.dumps(content))
    return target


@pytest.fixture(scope="module")
def output(run_folder, translation_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert write_report([run_folder, translation_folder], folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(output):
    return (output / "report.html").read_text(encoding="utf-8")


def test_sections_are_in_the_papers_order_for_each_setting(html):
    sections = [title for title in headings(html, 2) if title not in ("Columns", "Set-up")]
    assert sections == [*SECTIONS, "Translation", "Footprint", "Training"]
    assert headings(html, 1) == [
        "Adapters on inference and Translation",
        "Adapters on inference",
        "Translation",
    ]


def test_methods_of_one_label_are_told_apart_everywhere(tmp_path):
    make_run(tmp_path, shots=(8,), items=30, dev=False, recipes=(), ablated=())
    edit(tmp_path, lambda content: [c.update(label="LoRA") for c in content["cells"]])
    report = write_report([tmp_path])
    markdown = report.with_name("report.md").read_text(encoding="utf-8")
    for text in (report.read_text(encoding="utf-8"), markdown):
        assert "LoRA (hybrid) has the highest accuracy" in text
        assert not re.search(r"LoRA(?! \((lora|boft|hybrid)\))", text)


def test_sections_without_data_are_left_out(tmp_path):
    make_run(
        tmp_path, methods=("lora",), seeds=(0,), shots=(8,), dev=False, recipes=(), ablated=(),
        governance=None, governance_variants={"all": {"kept": 9}},
    )  # fmt: skip
    content = json.loads((tmp_path / "results.json").read_text())
    content["methods"] = [{"name": "lora", "footprint": None}]
    for cell in content["cells"]:
        cell["governance"] = "none"
        (tmp_path / cell["folder"] / "trained.json").unlink()
    (tmp_path / "results.json").write_text(json.dumps(content))
    text = write_report([tmp_path]).read_text(encoding="utf-8")
    assert headings(text, 2) == ["Main results", "Calibration", "Parity", "Columns", "Set-up"]
    assert "One seed" in text and "LoRA r = 8: " in text
    assert sorted(file.name for file in (tmp_path / "tables").iterdir()) == [
        "by_resource_class.tex", "by_script.tex", "languages_accuracy.tex", "languages_ece.tex", "main.tex",
        "parity.tex",
    ]  # fmt: skip


def test_numbers_agree_between_the_forms(run_folder, output, html):
    (setting,) = load_study([run_folder])
    value = next(
        row
        for row in quality.main_table(quality.main_quality(setting)).rows
        if row.label.startswith("Hybrid")
    ).values[0]
    number = f"{100 * value.value:.1f} ± {100 * value.std:.1f}"
    interval = f"[{100 * value.interval.low:.1f}, {100 * value.interval.high:.1f}]"
    cells = Page(html).row("Hybrid", 10)
    assert cells[1].replace("\u00a0", " ") == f"{number}{interval}"
    main = markdown_tables((output / "report.md").read_text(encoding="utf-8"))[0]
    assert main[3][1].replace("\\", "") == f"**{number}** {interval}"
    tex = (output / "tables" / "main_1.tex").read_text(encoding="utf-8")
    low, high = interval.strip("[]").split(", ")
    written = number.replace("±", r"$\pm$")
    assert f"\\textbf{{{written}}} \\\\[-2pt] {{\\scriptsize {{[}}{low}, {high}{{]}}}}" in tex


def test_every_number_of_a_cell_names_its_folders(run_folder, translation_folder, output, html):
    page = Page(html)
    titles = [
        attributes["title"] for tag, attributes in page.elements if tag == "td" and "title" in attributes
    ]
    assert len(titles) > 200
    for title in titles:
        for folder in title.rpartition("corrected; ")[2].split("; "):
            assert folder.startswith((str(run_folder), str(translation_folder)))
    main = (output / "tables" / "main_1.tex").read_text(encoding="utf-8")
    assert str(run_folder / "cells" / "hybrid.seed-2.shots-32.governance-all") in main
    markdown = (output / "report.md").read_text(encoding="utf-8")
    cells = next(table for table in markdown_tables(markdown) if table[0][-1] == "Folder")
    assert len(cells) == 1 + 27


def test_page_is_self_contained_and_images_have_alternative_text(html):
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "video"}
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    images = 0
    for tag, attributes in page.elements:
        if tag == "a":
            assert attributes["href"].removeprefix("#") in anchors
            continue
        for name in ("src", "href", "srcset", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith("data:image/svg+xml;base64,"), (tag, name)
        if tag == "img":
            images += 1
            assert len(attributes["alt"]) > 20
    # Language chart, reliability, shots, frontier; and of each setting curves, their inside, λ.
    assert images == 4 + 2 * 3
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html
    assert len(anchors) == sum("id" in attributes for _, attributes in page.elements)


def test_captions_are_outside_of_what_scrolls_and_name_their_tables(html):
    assert "<caption" not in html
    page = Page(html)
    captions = {attributes["id"] for tag, attributes in page.elements if tag == "p" and "id" in attributes}
    named = {
        attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes
    }
    assert captions == named and "caption-main_1" in named


def test_the_glossary_explains_what_there_is(html, run_folder, translation_folder):
    for folders, words in (
        ([run_folder], {"Accuracy"}),
        ([translation_folder], {"chrF++", "BLEU", "Bits per byte"}),
    ):
        view = build(load_study(folders))
        assert {"Accuracy", "chrF++", "BLEU", "Bits per byte"} & {name for name, _ in view.glossary} == words
    assert "Parity gap" in html and "<dt>Bits per byte</dt>" in html


def test_hostile_text_is_shown_and_not_run(run_folder, tmp_path):
    def change(content):
        content["title"] = HOSTILE
        content["config"]["note"] = HOSTILE
        content["missing"] = {HOSTILE: HOSTILE}
        for cell in content["cells"]:
            cell["label"] = HOSTILE if cell["method"] == "hybrid" else cell["label"]
        rejection = {
            "text": HOSTILE + "\x00\ud800",
            "language": '"><b',
            "reason": HOSTILE,
            "detail": {"x": HOSTILE},
        }
        content["governance"]["examples"]["quality"] = [rejection]

    path = write_report([changed(run_folder, tmp_path / "run", change)])
    page = Page(path.read_text(encoding="utf-8"))
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and "b" not in tags
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "\x00" not in page.text
    markdown = path.with_name("report.md").read_text(encoding="utf-8")
    markdown_tables(markdown)
    assert not re.search(r"(?<!\\)<", markdown)
    assert not re.search(r"(?<!\\)\[", markdown)
    assert len(re.findall(r"^# ", markdown, flags=re.MULTILINE)) == 1


def test_examples_of_rejections_keep_their_direction(html):
    page = Page(html)
    assert ("td", {"class": "text", "dir": "auto", "lang": "ar"}) in page.elements
    assert page.row("language", 4) == ["language", "ar", "wrong languageen 0.9", "قال إنه سيعود"]
    assert page.row("language", 3) == ["language", "20", "wrong language: 15; wrong script: 5"]
    assert ["Arabic (ar)", "110", "100", "10"] in page.rows


def test_what_was_cut_is_listed(run_folder, tmp_path):
    missing = {"hybrid.seed-3.shots-8.governance-all": "the loss is nan"}
    path = write_report([changed(run_folder, tmp_path / "run", lambda c: c.update(missing=missing))])
    page = Page(path.read_text(encoding="utf-8"))
    assert page.row("hybrid.seed-3", 2)[1] == "the loss is nan"
    assert "1 of 28 cells have no result" in page.text
    assert "the loss is nan" in path.with_name("report.md").read_text(encoding="utf-8")


def test_latex_escapes_and_is_well_formed():
    columns = [Column("Accuracy", "%", better="higher", top="A & B"), Column("γ_1", top="A & B"), Column("n")]
    rows = [
        Row(
            "50 % of {x}_1 & \\y$",
            [Value(0.5, 0.01, best=True, sources=("a_b/c",)), Value(None), Value("#1")],
        ),
        Row("−1 → 2", [Value(-0.25), Value(1.0), Value(2.0)], group="other", signed=True),
    ]
    text = latex(Table("my_table", "50 % & more", "Method", columns, rows, "Note: p < 0.05"))
    lines = text.splitlines()
    assert (
        r"50 \% of \{x\}\_1 \& \textbackslash{}y\$ & \textbf{50.0 $\pm$ 1.0} & -- & \#1 \\ % a_b/c" in lines
    )
    assert r"$-$1 $\rightarrow$ 2 & $-$25.0 & +1.0 & +2.0 \\ % " in lines
    assert r" & \multicolumn{2}{c}{A \& B} & \multicolumn{1}{c}{} \\" in lines
    assert r"\cmidrule(lr){2-3}" in lines and r"\label{tab:my-table}" in lines
    assert lines.count(r"\midrule") == 2
    code = re.sub(r"\\[{}]", "", re.sub(r"(?<!\\)%.*", "", text))
    assert code.count("{") == code.count("}")
    assert escape('a "b" ~ ^ <c>') == (
        r"a ''b'' \textasciitilde{} \textasciicircum{} \textless{}c\textgreater{}"
    )


def test_latex_divides_a_wide_table():
    columns = [Column(f"A method of the long name {i}", "%", top="Drop" if i > 3 else "") for i in range(7)]
    values = [
        Value(0.01 * i, interval=Interval(0, 0.5, 1), detail="d", sources=(f"cell{i}",)) for i in range(7)
    ]
    text = latex(Table("wide", "All", "Method", columns, [Row("x", values)], "The note."))
    first, second = text.split("\\begin{table*}")[1:]
    assert "All (1 of 2)." in first and "All (2 of 2)." in second and "\\addtocounter{table}{-1}" in second
    assert first.count("\\label") == 1 and "\\label" not in second
    assert "The note." in second and "The note." not in first
    assert [f"cell{i}" in first for i in range(7)] == [True] * 5 + [False] * 2
    assert [f"cell{i}" in second for i in range(7)] == [False] * 5 + [True] * 2
    assert "\\multicolumn{1}{c}{Drop}" in first and "\\multicolumn{2}{c}{Drop}" in second
    assert r"0.0 \\[-2pt] {\scriptsize {[}50.0, 100.0{]}} \\[-2pt] {\scriptsize d}" in first


def test_latex_divides_a_high_table():
    rows = [Row(f"row {i}", [Value(0.5, detail="below" if i < 20 else "")]) for i in range(30)]
    text = latex(Table("high", "All", "Method", [Column("n")], rows, "The note."))
    first, second = text.split("\\begin{table*}")[1:]
    # Eighteen rows of two lines, then two of two and ten of one.
    assert [f"row {i} " in first for i in range(30)] == [True] * 18 + [False] * 12
    assert [f"row {i} " in second for i in range(30)] == [False] * 18 + [True] * 12
    assert "All (2 of 2)." in second and "The note." in second and "The note." not in first


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles(output, tmp_path):
    names = sorted(path for path in (output / "tables").glob("*.tex"))
    inputs = "\n".join(f"\\input{{{path}}}\n\\clearpage" for path in names)
    (tmp_path / "all.tex").write_text(
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
        + inputs
        + "\n\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Float too large" not in done.stdout


def test_tables_of_a_former_report_are_removed(run_folder, tmp_path):
    run = changed(run_folder, tmp_path / "run", lambda content: None)
    write_report([run])
    assert (run / "tables" / "footprint.tex").is_file()
    (run / "tables" / "notes.txt").write_text("mine")
    content = json.loads((run / "results.json").read_text())
    content["methods"] = []
    (run / "results.json").write_text(json.dumps(content))
    write_report([run])
    assert not (run / "tables" / "footprint.tex").exists()
    assert (run / "tables" / "main.tex").is_file() and (run / "tables" / "notes.txt").is_file()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("title",), "title"),
        (("governance",), "governance"),
        (("machine", "cpu"), "machine.cpu"),
        (("cells", 1, "label"), "cells[1].label"),
        (("methods", 0, "footprint", 0, "step_seconds"), "methods[0].footprint[0].step_seconds"),
        (("governance", "by_step", "language", "reasons"), "governance.by_step.language.reasons"),
    ],
)
def test_missing_key_is_named_and_nothing_is_written(run_folder, tmp_path, path, key):
    def change(content):
        *parents, last = path
        for parent in parents:
            content = content[parent]
        del content[last]

    run = changed(run_folder, tmp_path / "run", change)
    with pytest.raises(ValueError, match=re.escape(f"results: key '{key}' is missing")):
        write_report([run], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_several_runs_need_an_output(run_folder, translation_folder):
    with pytest.raises(ValueError, match="output must be given for a report of 2 runs"):
        write_report([run_folder, translation_folder])


def test_interrupted_writing_leaves_the_previous_report(run_folder, tmp_path, monkeypatch):
    run = changed(run_folder, tmp_path / "run", lambda content: None)
    path = write_report([run])
    before = path.read_bytes()

    def interrupted(self, target):
        raise KeyboardInterrupt

    changed(run_folder, tmp_path / "other", lambda content: content.update(title="Another title"))
    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report([tmp_path / "other"], run)
    assert path.read_bytes() == before
    assert not [file for file in run.iterdir() if file.name.endswith(".partial")]


def test_metrics_do_not_need_the_reports_libraries():
    code = "import hybrid_kernels.evaluation, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "hybrid_kernels.evaluation.metrics" in loaded
    assert not {"matplotlib", "jinja2", "pydantic", "sklearn", "transformers"} & set(loaded)
