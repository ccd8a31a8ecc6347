"""The search for variants and tiles, on the interpreter: that it finds, checks, writes; not what is fast."""

import json
import logging

import pytest
import torch

from tests.support import DEVICE

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import low_rank, search, selection, skinny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_CACHE", str(tmp_path))
    selection.forget()
    yield selection.cache_file()
    selection.forget()


def run(path, shapes=((24, 32, 48),), limit=600.0, lines=None):
    report = (lambda line: None) if lines is None else lines.append
    return search.search(shapes, 4, torch.float32, DEVICE, limit, path, report, rounds=2)


def test_writes_a_row_for_every_operation_that_the_choice_then_follows(cache):
    lines = []
    rows = run(cache, lines=lines)
    operators = [
        "low_rank_linear",
        "low_rank_backward",
        "low_rank_add",
        "householder_factors",
        "householder_rotate",
        "block_rotate",
        "rotated_low_rank_linear",
        "project",
        "hybrid_factors",
    ]
    searched = ["projection", "forward", "output_gradient", "input_gradient", "down_gradient"]
    assert [row["operation"] for row in rows] == searched + operators
    assert len(lines) == len(rows)
    like = torch.empty(0, device=DEVICE)
    for row in rows[: len(searched)]:
        variant, _ = selection.choose(row["operation"], like, 24, 32, 48, 4)
        assert variant == row["variant"]
    content = json.loads(cache.read_text())[selection.device_name(DEVICE)]
    assert content["rows"] == rows
    assert not list(cache.parent.glob("*.tmp"))


def test_rows_of_other_shapes_and_devices_stay(cache):
    old = {
        "operation": "forward",
        "kind": "half",
        **dict.fromkeys("mknr", 8),
        "variant": "addmm",
        "ratio": 1.0,
    }
    name = selection.device_name(DEVICE)
    cache.write_text(json.dumps({name: {"rows": [old]}, "another GPU": {"rows": [old]}}))
    run(cache)
    run(cache)
    content = json.loads(cache.read_text())
    assert content["another GPU"] == {"rows": [old]}
    rows = content[name]["rows"]
    assert rows[0] == old
    assert len(rows) == 1 + 14


def test_a_wrong_kernel_is_left_out_and_named(cache, monkeypatch, caplog):
    honest = skinny.matmul
    monkeypatch.setattr(low_rank.skinny, "matmul", lambda *args, **kwargs: -honest(*args, **kwargs))
    with caplog.at_level(logging.INFO, logger="hybrid_kernels"):
        rows = run(cache)
    chosen = {row["operation"]: row["variant"] for row in rows}
    assert chosen["projection"] == chosen["down_gradient"] == "matmul"
    assert any(
        "projection: kernel" in r.getMessage() and "left out" in r.getMessage() for r in caplog.records
    )


def test_a_kernel_that_cannot_run_is_left_out(cache, monkeypatch):
    def out_of_resources(*_, **__):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(low_rank, "_matmul_low_rank", out_of_resources)
    problem = search.Problem(24, 32, 48, 4, torch.float32, DEVICE)
    row = search._search_operation("input_gradient", problem, 2, lambda: False)
    assert row["variant"] == "addmm"


def test_out_of_time_keeps_what_there_is(cache):
    lines = []
    rows = run(cache, shapes=((24, 32, 48), (48, 32, 24)), limit=0.0, lines=lines)
    assert {row["m"] for row in rows if row["operation"] == "forward"} == {24}
    assert lines[-1] == "out of time after 0 s: 48x32x24 and what follows are left out"
    assert json.loads(cache.read_text())


def test_an_interruption_loses_the_shape_under_way_alone(cache, monkeypatch):
    honest = search._operator_rows

    def interrupted(problem, rounds):
        if problem.shape[0] == 48:
            raise KeyboardInterrupt
        return honest(problem, rounds)

    monkeypatch.setattr(search, "_operator_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(cache, shapes=((24, 32, 48), (48, 32, 24)))
    rows = json.loads(cache.read_text())[selection.device_name(DEVICE)]["rows"]
    assert {row["m"] for row in rows if row["operation"] == "forward"} == {24}
