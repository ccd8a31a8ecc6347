import json

import pytest
import torch

from hybrid_kernels.benchmarking import session
from hybrid_kernels.benchmarking.selection import cases
from hybrid_kernels.cases import models

CPU = {"device": "cpu"}


def kinds(found):
    return {case.kind for case in found}


def names(found):
    return [case.name for case in found]


def test_nothing_chosen_is_the_first_shape_of_each_kind():
    found = cases(**CPU)
    assert kinds(found) == {"operator", "layer", "model"}
    assert len(set(names(found))) == len(found)
    assert len({case.shape["m"] for case in found if case.kind == "layer"}) == 1
    every = cases(kinds=["operators"], **CPU)
    assert len(every) > len(set(names(every)))
    firsts = {case.name: case.id for case in reversed(every)}
    assert [case.id for case in found if case.kind == "operator"] == list(firsts.values())[::-1]


def test_what_is_named_says_which_kinds():
    assert kinds(cases(operators=["cayley"], **CPU)) == {"operator"}
    assert kinds(cases(layers=["features"], **CPU)) == {"layer"}
    assert kinds(cases(model="llama-tiny", **CPU)) == {"model"}
    assert kinds(cases(model="llama-tiny", operators=["cayley"], **CPU)) == {"operator", "model"}


def test_cases_of_layers_and_of_a_model_are_matched_by_name_and_by_their_own_side():
    assert set(names(cases(layers=["features"], **CPU))) == {"features"}
    assert set(names(cases(layers=["hybrid"], **CPU))) == {"linear", "features"}
    assert all(name.startswith("accelerate-") for name in names(cases(layers=["accelerate"], **CPU)))
    assert names(cases(layers=["hybrid"], model="llama-tiny", **CPU)) == ["llama-tiny"]
    with pytest.raises(ValueError, match="there is no such case: nonsense;"):
        cases(operators=["cayley"], layers=["hybrid", "nonsense"], **CPU)
    with pytest.raises(ValueError, match="there is no such case: hybird"):
        cases(layers=["hybird"], **CPU)


def test_a_model_gives_layers_their_shapes():
    found = cases(kinds=["layers"], layers=["linear"], model="llama-tiny", batch=2, tokens=8, **CPU)
    shapes = {(case.shape["m"], case.shape["k"], case.shape["n"]) for case in found}
    assert shapes == {(16, 64, 64), (16, 64, 32), (16, 64, 128), (16, 128, 64)}


def test_shapes_dtype_and_device_reach_the_cases():
    (case,) = cases(operators=["householder_rotate"], shapes="m8-k16", dtype="bfloat16", **CPU)
    assert (case.shape["m"], case.shape["k"], case.dtype) == (8, 16, torch.bfloat16)
    (case,) = cases(layers=["linear"], shapes="8x16x24", **CPU)
    assert dict(case.shape) == {"m": 8, "k": 16, "n": 24} and case.dtype == torch.float32
    (case,) = cases(model="llama-tiny", layers=["hybrid"], model_layers=1, batch=2, tokens=8, **CPU)
    assert dict(case.shape) == {"layers": 1, "batch": 2, "tokens": 8}


def test_shapes_are_of_the_kinds_that_have_the_sizes():
    assert kinds(cases(shapes="8x64x64", **CPU)) == {"operator", "layer"}
    assert kinds(cases(shapes="m8-k64-n64-r4", **CPU)) == {"operator"}
    for chosen in ({"kinds": ["models"]}, {"model": "llama-tiny"}):
        with pytest.raises(ValueError, match="--shapes is of operators and layers; of a model there are"):
            cases(shapes="8x64x64", **chosen, **CPU)


def test_no_case_comes_twice():
    for arguments in (
        {"kinds": ["layers"], "model": "qwen2", "tokens": 8},  # one shape with and without a bias
        {"operators": ["scale_features"], "shapes": "m8-n8,m8-n8"},
    ):
        found = [case.id for case in cases(**arguments, **CPU)]
        assert len(set(found)) == len(found)


def test_sides_are_named_without_drawing_or_building_anything(monkeypatch):
    def drawn(*args, **options):
        raise AssertionError("drawn")

    kinds = ["layers", "models"]
    both = [*cases(kinds=kinds, **CPU), *cases(kinds=kinds, sweep="tokens", **CPU)]
    monkeypatch.setattr(torch, "randn", drawn)
    monkeypatch.setattr(torch, "randint", drawn)
    monkeypatch.setattr(models, "_auto_class", drawn)
    for case in both:
        assert session.sides(case, session.Options())


def test_a_sweep_is_of_the_kinds_that_have_the_size():
    assert kinds(cases(sweep="tokens", **CPU)) == {"operator", "layer", "model"}
    assert kinds(cases(sweep="reflections", **CPU)) == {"operator", "layer"}
    assert kinds(cases(sweep="blocks", **CPU)) == {"operator"}
    assert {case.sweep for case in cases(sweep="blocks", **CPU)} == {"blocks"}


def test_quick_is_small_and_without_the_compiler():
    found = cases(quick=True, **CPU)
    assert len(found) <= len(cases(**CPU))
    assert {case.name.split("-accelerate")[0] for case in found if case.kind == "model"} == {"llama-tiny"}
    (linear,) = (case for case in found if case.name == "linear")
    assert not any("compile" in side for side in linear.builders())


def test_arguments_survive_json():
    arguments = {"kinds": ("operators",), "operators": ("cayley",), "shapes": "b8", "compiled": False, **CPU}
    again = cases(**json.loads(json.dumps(arguments)))
    assert [case.id for case in again] == [case.id for case in cases(**arguments)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["operator"]}, "--kind is 'operator'; it may be one of 'operators', 'layers', 'models'"),
        ({"dtype": "int8"}, "--dtype is 'int8'"),
        ({"device": "tpu"}, "--device is 'tpu'; it may be 'cpu' or 'cuda'"),
        ({"device": "meta"}, "--device is 'meta'"),
        ({"sweep": "height", **CPU}, "sweep is 'height'"),
        ({"operators": ["cayly"], **CPU}, "cayly"),
        ({"shapes": "8by8", **CPU}, "8by8"),
    ],
)
def test_it_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        cases(**arguments)


def test_a_gpu_that_is_not_there_is_said_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="--device is 'cuda', and torch sees no GPU"):
        cases(device="cuda")
