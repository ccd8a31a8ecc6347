import json
import struct

import pytest

from hybrid_kernels import cli
from hybrid_kernels.benchmarking import charts, series
from hybrid_kernels.benchmarking.bar_chart import bar_chart
from hybrid_kernels.benchmarking.frame import WIDTH
from hybrid_kernels.chart_style import colour, line_style, marker, png, svg
from tests.benchmarking.recorded import EAGER, FLOOR, LAYER, MACHINE, OURS, PEER, run

SMALL, LARGE = {"m": 64, "k": 32, "n": 32}, {"m": 128, "k": 32, "n": 32}


def texts(figure):
    """All that is written in a figure, notes without their line breaks."""
    import matplotlib.text

    return [" ".join(t.get_text().split()) for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def named(records):
    return {chart.name: chart for chart in charts.charts(records)}


def sweep(device="cpu", **sides):
    return [
        record
        for m in (16, 32, 64)
        for record in run(
            LAYER | sides, {"m": m, "k": 32}, name="linear-by-tokens", sweep="tokens", device=device
        )
    ]


def test_ratio_bars_show_each_side_in_each_shape_but_the_floor_which_is_the_line_at_one():
    figure = named(run(LAYER, SMALL) + run(LAYER | {PEER: 2.5}, LARGE))[
        "layer-hybrid.cpu.float32.time"
    ].figure()
    written = texts(figure)
    for words in (OURS, EAGER, PEER, "1.10×", "1.20×", "1.50×", "1.25×", "m 64", "m 128", f"1 = {FLOOR}"):
        assert words in written, words
    assert FLOOR not in written
    assert any("float32 on CPU (a processor, 2 threads) · k 32, n 32" in text for text in written)
    notes = next(text for text in written if "commit abc1234" in text)
    assert "torch 2.13.0" in notes and "triton" not in notes and "medians of 25 interleaved rounds" in notes
    bars = [patch for patch in figure.axes[0].patches if patch.get_label() != "_child"]
    assert [bar.get_width() for bar in bars] == pytest.approx([1.1, 1.2, 1.5])


def test_bars_and_error_bars_are_the_recorded_ratios_on_a_logarithmic_axis_too():
    family = series.drawn(series.families(run(LAYER | {PEER: 40.0}, SMALL)))[0]
    axes = bar_chart(family, "time").axes[0]
    assert axes.get_xscale() == "log"
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([1.1, 1.2, 20.0])
    assert [bar.get_x() for bar in axes.patches] == [1.0] * 3
    lines = axes.collections[-1].get_segments()[0]
    assert lines[:, 0] == pytest.approx([0.96 * 20, 1.03 * 20])


def test_absolute_times_are_on_a_gpu_only():
    on_cpu = texts(named(run(LAYER, SMALL))["layer-hybrid.cpu.float32.time"].figure())
    assert not any("ms" in text or "µs" in text for text in on_cpu if "medians" not in text)
    gpu = {"machine": {**MACHINE, "gpu": "NVIDIA H100"}, "device": "cuda", "dtype": "bfloat16"}
    found = named(run(LAYER, SMALL, **gpu) + sweep("cuda") + sweep())
    written = texts(found["layer-hybrid.cuda.bfloat16.time"].figure())
    assert "1.10× 2.20 ms" in written and "bfloat16 on NVIDIA H100" in " ".join(written)
    assert "layer-linear-by-tokens.cuda.float32.seconds-against-tokens" in found
    assert "layer-linear-by-tokens.cpu.float32.seconds-against-tokens" not in found


def test_what_was_not_measured_is_named_with_the_reason_in_its_place():
    records = run(LAYER | {PEER: "OutOfMemoryError: no memory"}, SMALL)
    written = texts(named(records)["layer-hybrid.cpu.float32.time"].figure())
    assert "not measured: OutOfMemoryError: no memory" in written
    assert any(f"Not measured: {PEER}: OutOfMemoryError: no memory" in text for text in written)


def test_without_a_measured_floor_ratios_are_to_ours():
    for records in (run(LAYER, SMALL, floor=None), run(LAYER | {FLOOR: "no"}, SMALL)):
        figure = named(records)["layer-hybrid.cpu.float32.time"].figure()
        assert f"1 = {OURS}" in texts(figure) and "1.00×" in texts(figure) and "1.36×" in texts(figure)


def test_a_sweep_is_a_line_a_side_against_the_size_that_varies():
    records = sweep()
    records[-1] = {**records[-1], "failed": "RuntimeError: too large"}
    figure = named(records)["layer-linear-by-tokens.cpu.float32.time-against-tokens"].figure()
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines[OURS].get_xdata()) == [16, 32, 64]
    assert list(lines[OURS].get_ydata()) == pytest.approx([1.1] * 3)
    assert list(lines[PEER].get_xdata()) == [16, 32]
    assert f"{FLOOR} = 1" in lines and FLOOR not in lines
    assert axes.get_xlabel() == "tokens (m)"
    assert any(
        f"Not measured: {PEER} at tokens 64: RuntimeError: too large" in text for text in texts(figure)
    )
    styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(axes.lines)


def test_sizes_that_vary_together_are_one_axis():
    records = [
        record
        for size in (32, 64)
        for record in run(LAYER, {"m": 8, "k": size, "n": size}, name="linear-by-width", sweep="width")
    ]
    family = series.sweeps(series.families(records)[0])["width"]
    title, sizes = series.abscissa("width", family)
    assert title == "width (k = n)" and list(sizes.values()) == [(32, "32"), (64, "64")]
    records = [
        record
        for b in (8, 4)
        for record in run(LAYER, {"blocks": 32 // b, "b": b}, name="rotation", sweep="blocks")
    ]
    family = series.sweeps(series.families(records)[0])["blocks"]
    title, sizes = series.abscissa("blocks", family)
    assert title == "blocks (blocks × b)" and list(sizes.values()) == [(4, "4×8"), (8, "8×4")]


def test_a_shape_of_the_family_is_a_point_of_its_sweep_too():
    swept = sweep()
    alone = run(LAYER, {"m": 128, "k": 32}, name="linear-by-tokens")
    elsewhere = run(LAYER, {"m": 128, "k": 64}, name="linear-by-tokens")
    kept, _ = series.newest(
        swept[:4] + alone + elsewhere + swept[4:] + run(LAYER, {"m": 16, "k": 32}, name="linear-by-tokens")
    )
    (family,) = series.families(kept)
    assert [case.split("/")[2] for case in series.sweeps(family)["tokens"].cases] == [
        "m16-k32",
        "m128-k32",
        "m32-k32",
        "m64-k32",
    ]
    assert [case.split("/")[2] for case in series.bars(family).cases] == ["m16-k32", "m128-k32", "m128-k64"]


def test_a_sweep_of_one_size_is_drawn_as_bars():
    assert list(named(sweep()[:4])) == ["layer-linear-by-tokens.cpu.float32.time"]


def test_the_methods_that_are_accelerated_are_in_one_chart():
    records = []
    for method in ("LoRA", "HRA"):
        sides = {FLOOR: 2.0, f"PEFT {method}": 4.0, f"accelerated {method}": 2.2}
        records += run(sides, SMALL, name=f"accelerate-{method}-r=16", ours=f"accelerated {method}")
    found = named(records)
    assert list(found) == ["layer-accelerate.cpu.float32.time"]
    axes = found["layer-accelerate.cpu.float32.time"].figure().axes[0]
    assert len(axes.patches) == 4
    bold = [label.get_text() for label in axes.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["accelerated LoRA", "accelerated HRA"]


def test_memory_and_roofline_are_drawn_where_they_were_recorded():
    found = named(run(LAYER, SMALL, peak_bytes=3 * 2**20, roofline={"share": 0.41, "bound": "memory"}))
    assert "3.00 MiB" in texts(found["layer-hybrid.cpu.float32.memory"].figure())
    assert "41 %, memory" in texts(found["layer-hybrid.cpu.float32.roofline"].figure())
    assert list(named(run(LAYER, SMALL))) == ["layer-hybrid.cpu.float32.time"]


def test_of_the_passes_the_whole_step_is_drawn_else_the_backward():
    records = [record for part in ("forward", "both", "backward") for record in run(LAYER, SMALL, part=part)]
    assert "forward + backward" in named(records)["layer-hybrid.cpu.float32.time"].text
    (chart,) = charts.charts([record for record in records if record["pass"] != "both"])
    assert "hybrid, backward" in chart.text


def test_the_same_cases_of_two_machines_are_two_charts():
    other = {**MACHINE, "processor": "another"}
    found = named(run(LAYER, SMALL) + run(LAYER, SMALL, machine=other))
    assert list(found) == ["layer-hybrid.cpu.float32.time", "layer-hybrid.cpu.float32.time-2"]


def test_measurements_against_another_commit_are_not_drawn():
    own = run(LAYER, SMALL)
    beside = run({OURS: 9.0}, SMALL, commit="bbb2222", against={"commit": "aaa1111"})
    assert series.newest(own + beside) == (own, 0)


def test_a_record_that_cannot_be_shown_is_named():
    (record,) = run({OURS: 2.2}, SMALL)
    for name in ("kind", "median_seconds"):
        with pytest.raises(ValueError, match=f"'{OURS.replace('+', '.')}' has no '{name}'"):
            series.newest([{k: v for k, v in record.items() if k != name}])


def test_the_commit_measured_last_stands_for_a_case_and_the_last_record_for_a_side():
    old = run(LAYER | {"gone": 5.0}, SMALL, commit="aaa1111")
    new = run(LAYER, SMALL, commit="bbb2222")
    again = run({FLOOR: 2.0, OURS: 2.1}, SMALL, commit="bbb2222")
    kept, older = series.newest(old + new + again)
    assert older == 5 and {record["commit"] for record in kept} == {"bbb2222"}
    assert [record["side"] for record in kept] == list(LAYER)
    assert next(r for r in kept if r["side"] == OURS)["median_seconds"] == pytest.approx(2.1e-3)
    # Back at the old commit: the one measured last, not the one that came last.
    kept, older = series.newest(old + new + old)
    assert {record["commit"] for record in kept} == {"aaa1111"} and older == 4
    other = run(LAYER, LARGE, commit="aaa1111") + new
    assert series.newest(other) == (other, 0)


def test_pictures_are_the_same_each_time_and_on_white():
    chart = charts.charts(run(LAYER, SMALL))[0]
    first, second = (png(chart.figure()) for _ in range(2))
    assert first == second and b"Software" not in first and b"tIME" not in first
    width, height = struct.unpack(">II", first[16:24])
    assert width == round(WIDTH * 160) and 300 < height < 900
    assert svg(chart.figure()) == svg(chart.figure())


def test_no_two_labels_of_a_chart_overlap_nor_leave_it():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    long = {f"a side with quite a long name, variant {i}, on a backend": 2.0 + 7 * i for i in range(8)}
    shapes = [{"m": 2**i, "k": 4096, "n": 14336} for i in range(6)]
    for device in ("cpu", "cuda"):
        records = [record for shape in shapes for record in run(LAYER | long, shape, device=device)]
        figure = charts.charts(records)[0].figure()
        FigureCanvasAgg(figure).draw()
        page = figure.bbox
        for axes in figure.axes:
            labels = [
                *axes.texts,
                axes.title,
                axes._left_title,
                *axes.get_yticklabels(),
                *axes.get_xticklabels(),
            ]
            boxes = [
                label.get_window_extent() for label in labels if label.get_text() and label.get_visible()
            ]
            boxes = [box for box in boxes if box.width > 1]
            assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.fixture
def plot(tmp_path, capsys):
    """Runs bench plot on files of these records: (exit code, output, folder)."""

    def call(*files, arguments=()):
        paths = []
        for number, records in enumerate(files):
            paths.append(tmp_path / f"bench{number}.jsonl")
            paths[-1].write_text("".join(json.dumps(record) + "\n" for record in records))
        with pytest.raises(SystemExit) as caught:
            cli.main(["bench", "plot", *map(str, paths), *arguments])
        captured = capsys.readouterr()
        return (
            int(caught.value.code or 0),
            " ".join((captured.out + captured.err).split()),
            tmp_path / "charts",
        )

    return call


def test_plot_writes_pictures_and_the_page(plot):
    gpu = run(LAYER, SMALL, device="cuda", dtype="bfloat16")
    code, _, folder = plot(run(LAYER, SMALL), gpu)
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "bench.html",
        "layer-hybrid.cpu.float32.time.png",
        "layer-hybrid.cuda.bfloat16.time.png",
    ]
    page = (folder / "bench.html").read_text()
    assert "bench0.jsonl, bench1.jsonl" in page


def test_plot_of_some_charts(plot):
    records = run(LAYER, SMALL, peak_bytes=1) + sweep()
    code, _, folder = plot(records, arguments=["--only", "*.memory,layer-hybrid.cpu.float32.time"])
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "layer-hybrid.cpu.float32.memory.png",
        "layer-hybrid.cpu.float32.time.png",
    ]
    code, said, _ = plot(records, arguments=["--only", "*.memory,*.nothing"])
    assert code == 2 and "--only has *.nothing; the charts are: layer-hybrid.cpu.float32.time" in said


def test_plot_of_what_cannot_be_drawn(plot, tmp_path):
    code, said, folder = plot([])
    assert code == 2 and "nothing is measured in" in said and not folder.exists()
    code, said, folder = plot(run(dict.fromkeys(LAYER, "RuntimeError: no"), SMALL))
    assert code == 0 and "no side was measured" in said
    assert [path.name for path in folder.iterdir()] == ["bench.html"]
    code, said, _ = plot(arguments=[str(tmp_path / "missing.jsonl")])
    assert code == 2 and "there is no result file" in said


def test_plot_says_that_older_commits_are_left_out(plot):
    _, said, _ = plot(run(LAYER, SMALL, commit="aaa1111") + run(LAYER, SMALL))
    assert "4 records of other commits" in said


def test_plot_without_matplotlib_says_what_to_install(plot, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, said, folder = plot(run(LAYER, SMALL))
    assert code == 2 and "pip install 'hybrid-kernels[plots]'" in said and not folder.exists()


def test_a_failed_write_leaves_the_old_file_and_no_part(plot, tmp_path, monkeypatch):
    from pathlib import Path

    plot(run(LAYER, SMALL))
    before = (tmp_path / "charts" / "bench.html").read_bytes()

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, said, folder = plot(run(LAYER, LARGE))
    assert code == 2 and "No space left" in said
    assert (folder / "bench.html").read_bytes() == before
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_thirty_entries_are_told_apart_with_and_without_markers():
    assert len({(colour(i), marker(i)) for i in range(100)}) == 100
    assert len({(colour(i), line_style(i)) for i in range(30)}) == 30
