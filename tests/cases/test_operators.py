"""The operators' cases: all are there, ours is the reference, the peers compute what ours does."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import hybrid_kernels as hk
from hybrid_kernels.cases import operator_peers as peers
from hybrid_kernels.cases.base import (
    PASSES,
    Inputs,
    OperatorCase,
    Shape,
    Side,
    flattened,
    generator,
    shape_name,
)
from hybrid_kernels.cases.operators import OPERATORS, OURS, SWEEPS, backends_of, benchmark_cases, operators_of

CPU = torch.device("cpu")
F64 = torch.float64


def drawn(case: OperatorCase, shape: Shape, dtype: torch.dtype = F64) -> Inputs:
    return case.draw(shape, dtype, CPU, generator(0, case.name, shape_name(shape)))


def with_gradients(side: Side) -> tuple[list[Tensor], list[Tensor | None]]:
    outputs = flattened(side.forward())
    gradients = torch.autograd.grad(outputs, side.leaves, side.gradients, allow_unused=True)
    return outputs, list(gradients)


def test_every_function_that_computes_something_has_a_case():
    assert set(OPERATORS) == set(hk.functional.__all__) - {"dropout_seed"}
    for case in OPERATORS.values():
        assert 5 <= len(case.shapes) <= 8 and len(set(map(shape_name, case.shapes))) == len(case.shapes)
        assert case.measured["cpu"] and case.measured["cuda"]


@pytest.mark.parametrize("name", OPERATORS)
def test_ours_and_its_gradients_are_the_reference_in_float64(name):
    case = OPERATORS[name]
    dtypes = [F64, *({torch.complex128} & set(case.dtypes))]
    for shape in case.shapes:
        for dtype in dtypes:
            arguments = drawn(case, shape, dtype)
            results = []
            for function in (case.fast, case.reference):
                leaves = {n: peers._leaf(v) if n in case.differentiable else v for n, v in arguments.items()}
                outputs = flattened(function(**leaves))
                wanted = [t for n in case.differentiable for t in flattened(leaves[n])]
                # Not linear: the gradient depends on the result too.
                loss = sum((t * t.conj()).real.sum() + t.real.sin().sum() for t in outputs)
                results.append((outputs, list(torch.autograd.grad(loss, wanted))))
            torch.testing.assert_close(*results)
            assert [t.shape for t in results[0][0]] == [t.shape for t in results[1][0]]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_dtype_sees_the_same_numbers_and_gives_results_of_the_same_dtype_as_the_reference(name):
    case = OPERATORS[name]
    shape = case.shapes[1]
    wide = flattened(list(drawn(case, shape).values()))
    for dtype in case.dtypes:
        arguments = drawn(case, shape, dtype)
        ours, theirs = (flattened(function(**arguments)) for function in (case.fast, case.reference))
        assert [t.dtype for t in ours] == [t.dtype for t in theirs]
        for tensor, same in zip(flattened(list(arguments.values())), wide, strict=True):
            if not dtype.is_complex and tensor.is_floating_point():
                assert tensor.dtype == dtype and torch.equal(tensor, same.to(dtype))


def small(case: OperatorCase) -> Shape:
    """Sizes of the first measured shape, small, and none of them like another."""
    tiny = {
        "m": 5, "k": 12, "n": 10, "r": 3, "reflections": 4, "blocks": 8, "b": 6, "levels": 3, "terms": 5, "layers": 2
    }  # fmt: skip
    return {size: tiny[size] for size in case.measured["cpu"][0]}


def for_peers(case: OperatorCase) -> Inputs:
    arguments = drawn(case, small(case))
    if "u" in arguments:
        arguments["u"] = arguments["u"].tril()  # what LAPACK's reflectors can be
    for name in ("packed", "skew"):
        if isinstance(arguments.get(name), Tensor) and case.name != "cayley_neumann_packed":
            arguments[name] = arguments[name] * 1e-4  # where the truncated series is as good as exact
    return arguments


PEERS = [(name, peer) for name, case in OPERATORS.items() for peer in case.peers]
COLUMNS = "columns of H"


@pytest.mark.parametrize(("name", "peer"), [(n, p) for n, p in PEERS if p != peers.COMPILED])
def test_a_peer_computes_what_ours_does_and_its_gradients(name, peer):
    case = OPERATORS[name]
    arguments = for_peers(case)
    try:
        side = case.peers[peer](arguments)
    except ImportError as error:
        pytest.skip(str(error))

    def ours(**leaves):
        result = case.fast(**leaves)
        if COLUMNS in peer:
            (v, t), n = result, arguments["u"].shape[1]
            return torch.eye(len(v), n, dtype=v.dtype) - v @ t @ v[:n].mT
        if "series" in peer and name == "cayley_packed":
            return result.mT
        return result

    outputs, gradients = with_gradients(side)
    leaves, mine = peers.trained(arguments)
    true = flattened(ours(**leaves))
    torch.testing.assert_close(outputs, true, rtol=1e-7, atol=1e-9)
    true_gradients = list(torch.autograd.grad(true, mine, side.gradients, allow_unused=True))
    if "orthogonal" in peer:
        # Its parameter is −2A below the diagonal: of A[i, j] = −A[j, i] as many derivatives as of the lower triangle.
        a = (arguments["skew"] - arguments["skew"].mH) / 2 if name == "cayley" else None
        assert side.leaves[0].shape[-1] == arguments.get("block_size", a.shape[-1] if a is not None else 0)
        row, column = torch.tril_indices(*side.leaves[0].shape[-2:], offset=-1)
        mine_of_x = gradients[0][..., row, column]
        true_of_a = true_gradients[0]
        if name == "cayley_packed":
            upper = torch.triu_indices(*side.leaves[0].shape[-2:], offset=1)
            place = {tuple(ij): index for index, ij in enumerate(upper.T.tolist())}
            order = [place[j, i] for i, j in zip(row.tolist(), column.tolist(), strict=True)]
            torch.testing.assert_close(
                2 * mine_of_x, true_of_a[..., order]
            )  # p[j, i] = −A[i, j] = X[i, j] / 2
        else:  # a full X has both triangles
            torch.testing.assert_close(mine_of_x, -true_of_a[..., row, column])
        return
    if "householder_product" in peer:  # the rest of u does not count there
        true_gradients[-1] = true_gradients[-1].tril()
    tolerance = {"rtol": 1e-3, "atol": 1e-6} if "series" in peer else {}
    torch.testing.assert_close(gradients, true_gradients, **tolerance)


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_householder", None)
    for name in ("householder_factors", "householder_rotate"):
        (build,) = [build for peer, build in OPERATORS[name].peers.items() if peer.startswith("torch-h")]
        with pytest.raises(ImportError, match="torch-householder is not installed"):
            build(for_peers(OPERATORS[name]))


def test_the_compiled_peer_is_the_plain_one_and_its_backward_runs_twice():
    case = OPERATORS["low_rank_add"]
    arguments = for_peers(case)
    plain, compiled = (case.peers[peer](arguments) for peer in ("plain PyTorch", peers.COMPILED))
    torch.testing.assert_close(with_gradients(compiled), with_gradients(plain))
    step = compiled.step("backward")
    step()
    step()


@pytest.mark.parametrize("name", [name for name, case in OPERATORS.items() if case.floor])
def test_the_floor_gives_results_and_gradients_of_the_shapes_of_ours(name):
    case = OPERATORS[name]
    arguments = for_peers(case)
    assert case.floor is not None
    floor, ours = case.floor[1](arguments), peers.of(case.fast)(arguments)
    assert [t.shape for t in floor.gradients] == [t.shape for t in ours.gradients]
    for mine, same in zip(floor.gradients, ours.gradients, strict=True):
        assert torch.equal(mine, same)
    _, (gradient,) = with_gradients(floor)
    assert gradient is not None and gradient.shape == floor.leaves[0].shape


def test_frozen_weights_have_no_gradient_and_what_an_adapter_trains_has_one():
    case = OPERATORS["hybrid_linear"]
    arguments = drawn(case, {**small(case), "bias": 1})
    side = peers.of(OPERATORS["hybrid_linear"].fast)(arguments)
    trained = [arguments[name] for name in ("x", "lora_A", "lora_B", "u", "mixing")]
    assert [leaf.shape for leaf in side.leaves] == [tensor.shape for tensor in trained]


def test_benchmark_cases_have_ours_the_backends_here_the_floor_and_the_peers():
    (case,) = benchmark_cases(
        CPU, torch.float32, ["householder_rotate"], "m7-k12-reflections3", compiled=False
    )
    assert case.id == "operator/householder_rotate/m7-k12-reflections3/float32/cpu"
    assert case.ours == OURS and case.floor == "copy"
    builders = case.builders()
    backends = backends_of("householder_rotate", CPU)
    assert "eager" in backends
    assert list(builders) == [
        "copy",
        OURS,
        *(f"{OURS}, {backend}" for backend in backends),
        *(peer for peer in OPERATORS["householder_rotate"].peers if peer != peers.COMPILED),
    ]
    side = builders[f"{OURS}, eager"]()
    assert side.backend == "eager"
    for part in PASSES:
        side.step(part)()


def test_a_backend_that_an_operator_lacks_is_no_side_of_it():
    assert operators_of("structured_unitary") == frozenset()
    assert backends_of("structured_unitary", CPU) == []
    assert {"low_rank_linear", "low_rank_backward"} <= operators_of("low_rank_linear")


def test_variants_are_sides_where_triton_has_some(monkeypatch):
    from hybrid_kernels.cases import operators

    monkeypatch.setattr(operators, "backends_of", lambda name, device: ["eager", "triton"])

    def sides(name: str, shape: str) -> set[str]:
        (case,) = benchmark_cases(CPU, torch.float32, [name], shape)
        return {
            side.removeprefix("ours, triton") for side in case.builders() if side.startswith("ours, triton")
        }

    assert sides("low_rank_linear", "m8-r16") == {" addmm", " accumulate", " epilogue", " one_pass"}
    assert sides("low_rank_linear", "m512-r16") == {" addmm", " accumulate", " epilogue"}
    assert sides("householder_rotate", "m8") == {""}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", OPERATORS)
def test_work_is_positive_adds_up_and_grows_with_the_dtype(name, device):
    case = OPERATORS[name]
    assert case.work is not None
    for shape in case.measured[device]:
        forward, backward, both = (case.work(shape, torch.float32, part) for part in PASSES)
        assert min(*forward, *backward) > 0
        assert both == pytest.approx((forward[0] + backward[0], forward[1] + backward[1]))
        assert case.work(shape, F64, "both") == pytest.approx((both[0], 2 * both[1]))


@pytest.mark.parametrize("name", OPERATORS)
def test_bytes_of_the_forward_are_those_of_the_arguments_and_results(name):
    """Flags, which are not measured, and what is of another dtype than the rest, aside."""
    case = OPERATORS[name]
    shape = small(case)
    arguments = drawn(case, shape)
    if name in ("structured_unitary", "hybrid_linear", "hybrid_factors"):
        arguments = {n: v for n, v in arguments.items() if n not in ("permutation", "mixing")}
    outputs = flattened(case.fast(**drawn(case, shape)))
    tensors = [*flattened(list(arguments.values())), *outputs]
    assert case.work is not None
    assert case.work(shape, F64, "forward")[1] == pytest.approx(sum(t.numel() for t in tensors) * 8)


def test_operations_are_those_of_the_products():
    m, k, n, r = 5, 12, 10, 3
    forward, _ = OPERATORS["low_rank_linear"].work({"m": m, "k": k, "n": n, "r": r}, F64, "forward")
    assert forward == 2 * m * k * n + 2 * m * r * (k + n)
    backward, _ = OPERATORS["low_rank_linear"].work({"m": m, "k": k, "n": n, "r": r}, F64, "backward")
    assert backward == 2 * m * k * n + 4 * m * r * (k + n)
    real, complex_ = (
        OPERATORS["cayley"].work({"blocks": 2, "b": 3}, d, "both")[0] for d in (F64, torch.complex128)
    )
    assert real == 2 * 6 * 27 and complex_ == 4 * real


VARIES = {
    "tokens": {"m"},
    "width": {"k", "n", "blocks"},
    "rank": {"r"},
    "reflections": {"reflections"},
    "blocks": {"blocks", "b"},
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_varies_its_size_only(sweep, device):
    families: dict[str, list[Shape]] = {}
    for case in benchmark_cases(torch.device(device), torch.float32, sweep=sweep):
        assert case.sweep == sweep
        families.setdefault(case.name, []).append(case.shape)
    assert len(families) >= 5
    for name, family in families.items():
        base = OPERATORS[name].measured[device][0]
        assert base in family and len(set(map(shape_name, family))) == len(family) == 5
        for shape in family:
            assert {size for size in base if shape[size] != base[size]} <= VARIES[sweep]
            assert list(shape) == list(base)
            if sweep == "blocks":
                assert shape["blocks"] * shape["b"] == base["blocks"] * base["b"]


def test_every_swept_butterfly_can_be_drawn_and_run():
    case = OPERATORS["butterfly_rotate"]
    for sweep in ("width", "blocks"):
        for swept in benchmark_cases(CPU, torch.float32, ["butterfly_rotate"], "m2", sweep=sweep):
            case.fast(**drawn(case, swept.shape, torch.float32))


def test_shapes_go_to_the_operators_that_have_their_sizes():
    found = benchmark_cases(CPU, torch.float32, shapes="m3-b8,4x5x6")
    assert {case.name for case in found if case.shape.get("b") == 8} == {
        "rotated_low_rank_linear",
        "block_rotate",
        "butterfly_rotate",
    }
    assert all(
        case.shape["k"] == 5 and case.shape["m"] == 4 for case in found if case.name.startswith("low_rank")
    )
    assert benchmark_cases(CPU, torch.complex64, ["cayley"], [{"b": 3}])[0].shape == {"blocks": 1024, "b": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["kayley"]}, "operator is 'kayley'; it may be one of 'low_rank_linear'"),
        (
            {"names": ["cayley"], "shapes": "m3"},
            "shape m3 has sizes that cayley lacks; it may have b, blocks",
        ),
        ({"shapes": "m0"}, "shape m0 has m = 0; it must be at least 1"),
        ({"shapes": "m3-layers2-terms4"}, "no operator asked for has shape m3-layers2-terms4"),
        ({"shapes": "3x4"}, "shapes has '3x4'; it may have m512-k768-n768-r32"),
        ({"names": ["cayley"], "sweep": "rank"}, "no operator asked for has sweep 'rank'"),
        ({"sweep": "depth"}, "sweep is 'depth'; it may be one of 'tokens', 'width'"),
        (
            {"names": ["low_rank_add"], "dtype": torch.complex64},
            "dtype is complex64; low_rank_add may be measured in",
        ),
        ({"device": torch.device("meta")}, "device is 'meta'; it may be 'cpu' or 'cuda'"),
    ],
)
def test_what_no_operator_has_is_an_error_that_says_what_there_is(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        benchmark_cases(**{"device": CPU, "dtype": torch.float32, **arguments})
