"""The choice of variants and tiles: measured rows, classes of shapes, defaults, damaged files."""

import json
import logging

import pytest
import torch

from triton_ops import selection
from triton_ops.selection import Tiles

DEVICE_NAME = "cpu"
ROW = {
    "operation": "forward",
    "kind": "half",
    "m": 1024,
    "k": 4096,
    "n": 4096,
    "r": 32,
    "variant": "epilogue",
    "tiles": [128, 128, 64, 8, 4, True],
    "ratio": 0.9,
}
SHAPE = (1024, 4096, 4096, 32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the user, and nothing remembered before or after."""
    monkeypatch.setenv("HYBRID_KERNELS_CACHE", str(tmp_path))
    selection.forget()
    yield selection.cache_file()
    selection.forget()


def keep(path, *rows):
    path.write_text(json.dumps({DEVICE_NAME: {"rows": list(rows)}}))
    selection.forget()


def half():
    return torch.empty(0, dtype=torch.bfloat16)


def test_default_where_nothing_was_measured():
    for operation, default in selection.DEFAULTS.items():
        assert selection.choose(operation, half(), *SHAPE) == (default, None)
        assert default in selection.VARIANTS[operation]
    assert not selection.wins("low_rank_linear", half(), *SHAPE)


def test_a_row_serves_its_class_and_no_other(cache):
    keep(cache, ROW)
    chosen = "epilogue", Tiles(128, 128, 64, 8, 4, True)
    assert selection.choose("forward", half(), *SHAPE) == chosen
    for shape in (512, 4096, 4096, 32), (2048, 8192, 2048, 16), (700, 5000, 3000, 40):
        assert selection.choose("forward", half(), *shape) == chosen
    for shape in (511, 4096, 4096, 32), (1024, 8193, 4096, 32), (1024, 4096, 4096, 65), (0, 4096, 4096, 32):
        assert selection.choose("forward", half(), *shape) == ("addmm", None)
    assert selection.choose("input_gradient", half(), *SHAPE) == ("addmm", None)
    assert selection.choose("forward", half().float(), *SHAPE) == ("addmm", None)


def test_the_nearest_row_of_several(cache):
    keep(cache, ROW, {**ROW, "m": 600, "variant": "one_pass", "tiles": None})
    assert selection.choose("forward", half(), 700, *SHAPE[1:]) == ("one_pass", None)
    assert selection.choose("forward", half(), 900, *SHAPE[1:])[0] == "epilogue"


def test_the_user_goes_before_the_package(cache, monkeypatch, tmp_path):
    committed = tmp_path / "committed.json"
    keep(committed, {**ROW, "variant": "one_pass"})
    monkeypatch.setattr(selection, "COMMITTED", committed)
    selection.forget()
    assert selection.choose("forward", half(), *SHAPE)[0] == "one_pass"
    keep(cache, ROW)
    assert selection.choose("forward", half(), *SHAPE)[0] == "epilogue"


def test_a_request_goes_before_a_measurement(cache):
    keep(cache, ROW)
    assert selection.choose("forward", half(), *SHAPE, "one_pass") == ("one_pass", None)
    assert selection.choose("forward", half(), *SHAPE, "epilogue")[1] == Tiles(*ROW["tiles"])
    assert (
        selection.choose("forward", half(), *SHAPE, "fused")[0] == "epilogue"
    )  # no variant of this operation
    with selection.forced("forward", ("one_pass", Tiles(16, 32, 64, 4, 3))):
        assert selection.choose("forward", half(), *SHAPE, "addmm") == ("one_pass", Tiles(16, 32, 64, 4, 3))
    assert selection.choose("forward", half(), *SHAPE)[0] == "epilogue"


def test_triton_wins_on_a_gpu_by_more_than_noise(cache, monkeypatch):
    monkeypatch.setattr(selection, "device_name", lambda device: DEVICE_NAME)

    class OnGpu:
        device, dtype = torch.device("cuda"), torch.bfloat16

    for ratio, wins in (0.9, True), (0.99, False), (1.2, False):
        keep(
            cache, {**ROW, "operation": "low_rank_linear", "variant": "triton", "tiles": None, "ratio": ratio}
        )
        assert selection.wins("low_rank_linear", OnGpu, *SHAPE) is wins
        assert not selection.wins("low_rank_linear", half(), *SHAPE)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"cpu": {}}', '{"cpu": {"rows": [3]}}', '{"cpu": {"rows": 3}}']
    + [
        json.dumps({"cpu": {"rows": [{**ROW, **bad}]}})
        for bad in (
            {"m": 0},
            {"k": "x"},
            {"operation": None},
            {"kind": "quarter"},
            {"variant": "fused"},
            {"ratio": None},
            {"tiles": [1]},
            {"tiles": [100, 128, 64, 8, 4]},
            {"tiles": "128"},
        )
    ],
)
def test_a_damaged_file_is_ignored_and_named(content, cache, caplog):
    cache.write_text(content)
    selection.forget()
    with caplog.at_level(logging.WARNING, logger="hybrid_kernels"):
        assert selection.choose("forward", half(), *SHAPE) == ("addmm", None)
    assert [str(cache) in record.getMessage() for record in caplog.records] == [True]


def test_a_bad_row_costs_no_other(cache, caplog):
    keep(cache, {**ROW, "m": -1}, ROW)
    assert selection.choose("forward", half(), *SHAPE)[0] == "epilogue"
    assert len(caplog.records) == 1


def test_what_never_takes_tf32_has_rows_of_its_own(cache):
    keep(cache, {**ROW, "operation": "project", "kind": "ieee", "variant": "triton", "tiles": None})
    single, matmul = half().float(), torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for matmul.allow_tf32 in (True, False):
            assert selection.find("project", single, *SHAPE, exact=True) is not None
            assert (selection.find("project", single, *SHAPE) is None) is matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_a_user_without_a_home(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("HYBRID_KERNELS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(selection.Path, "home", homeless)
    assert selection.cache_file().parts[-2:] == ("hybrid-kernels", "selection.json")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("HYBRID_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert selection.cache_file() == tmp_path / "hybrid-kernels" / "selection.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert selection.cache_file().parts[-3:] == (".cache", "hybrid-kernels", "selection.json")


def test_the_committed_rows_can_be_read():
    content = selection.read(selection.COMMITTED)
    for device in content.values():
        assert device["rows"]
        for row in device["rows"]:
            variants = selection.VARIANTS.get(row["operation"], ("triton",))
            assert row["variant"] in variants


def test_what_runs_is_noted_and_logged_once(caplog):
    selection.RAN.clear()
    with caplog.at_level(logging.DEBUG, logger="hybrid_kernels"):
        for _ in range(2):
            selection.note("forward", "addmm", None, half())
    assert len(selection.RAN) == len(caplog.records) == 1
    assert "forward: variant 'addmm'" in caplog.records[0].getMessage()
