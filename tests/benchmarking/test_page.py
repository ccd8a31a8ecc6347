import re

import pytest

from hybrid_kernels.benchmarking import charts, series
from hybrid_kernels.benchmarking.page import page
from tests.benchmarking.recorded import FLOOR, LAYER, MACHINE, OURS, PEER, run
from tests.pages import Page

SHAPE = {"m": 64, "k": 32, "n": 32}


def parsed(records, older=0):
    records, _ = series.newest(records)
    return Page(page(records, charts.charts(records), ["bench.jsonl"], older))


def row(found, begin):
    return next(cells for cells in found.rows if cells and cells[0].startswith(begin) and len(cells) > 1)


def test_tables_have_all_records_with_ratios_and_quartiles():
    records = run(LAYER, SHAPE) + run(LAYER | {PEER: 2.6}, SHAPE, part="forward")
    found = parsed(records)
    assert row(found, PEER) == [PEER, "1.500 (1.440 to 1.545)", "1.364 (1.309 to 1.405)", "1,000"]
    assert row(found, OURS)[1:3] == ["1.100 (1.056 to 1.133)", "1"]
    assert "1.300 (1.248 to 1.339)" in found.text
    assert "ran low_rank_linear: cpp" in row(found, OURS)[0]
    for words in ("m 64, k 32, n 32", "abc1234", "torch 2.13.0", "a processor", "2026-01-01", f"× {FLOOR}"):
        assert words in found.text, words


def test_absolute_times_graphs_and_roofline_are_on_a_gpu_only():
    more = {
        "graph": {"median_seconds": 4e-4, "ratios": {}},
        "roofline": {"share": 0.41, "bound": "compute"},
        "peak_bytes": 2**21,
    }
    cells = row(parsed(run(LAYER, SHAPE, device="cuda", **more)), OURS)
    assert cells[3:] == ["2.20 ms", "400 µs", "41 %, compute", "2.00 MiB", "1,000"]
    assert len(row(parsed(run(LAYER, SHAPE)), OURS)) == 4
    failed = run(LAYER, SHAPE, device="cuda", **(more | {"graph": {"failed": "it waits"}}))
    assert "it waits" in row(parsed(failed), OURS)[4]


def test_failures_are_listed_with_their_reasons():
    found = parsed(run(LAYER | {PEER: "OutOfMemoryError: of\nmemory"}, SHAPE))
    assert row(found, "layer/hybrid/m64-k32-n32")[1:] == ["both", PEER, "OutOfMemoryError: of memory"]
    assert row(found, PEER)[1] == "not measured: OutOfMemoryError: of memory"
    assert "Not measured" not in parsed(run(LAYER, SHAPE)).text


def test_only_failures_make_a_page():
    found = parsed(run(dict.fromkeys(LAYER, "RuntimeError: no"), SHAPE))
    assert not [tag for tag, _ in found.elements if tag == "img"]
    assert found.text.count("not measured: RuntimeError: no") == len(LAYER)


def test_machines_have_sections_of_their_own_and_passed_over_backends_a_reason():
    gpu = {**MACHINE, "gpu": "NVIDIA H100"}
    records = run(LAYER, SHAPE, declined={"low_rank_linear: triton": "no GPU"}) + run(
        LAYER, SHAPE, device="cuda", dtype="bfloat16", machine=gpu, commit="fff0000"
    )
    found = parsed(records, older=3)
    assert "float32 on CPU (a processor, 2 threads)" in found.text and "bfloat16 on NVIDIA H100" in found.text
    assert "passed over: low_rank_linear: triton: no GPU" in found.text
    assert "3 records of other commits are left out" in " ".join(found.text.split())


def test_where_the_time_went_and_notes_are_shown():
    profile = [{"name": "aten::mm", "calls": 3, "share": 0.613}]
    found = parsed(run(LAYER, SHAPE, profile=profile, notes=["PEFT BOFT: plain PyTorch"]))
    assert "profile: aten::mm 61 % (3 calls)" in row(found, OURS)[0]
    assert found.text.count("PEFT BOFT: plain PyTorch") == 1


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_is_given():
    hostile = "<script>alert(1)</script>"
    records = run({FLOOR: 2.0, OURS: 2.2, hostile: 3.0, "x": hostile}, SHAPE, commit=hostile, name=hostile)
    records, _ = series.newest(records)
    text = page(records, charts.charts(records), [hostile])
    assert hostile not in text and "&lt;script&gt;" in text
    found = Page(text)
    links = [a[k] for _, a in found.elements for k in ("src", "href") if k in a]
    assert links and all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert not re.search(r"url\(|@import", text)
    assert all(attributes.get("alt") for tag, attributes in found.elements if tag == "img")


@pytest.mark.parametrize(
    "missing", ["versions", "machine", "date", "ran", "declined", "profile", "graph", "parameters"]
)
def test_a_field_that_is_not_there_is_no_obstacle(missing):
    records = [{k: v for k, v in record.items() if k != missing} for record in run(LAYER, SHAPE)]
    assert PEER in parsed(records).text
