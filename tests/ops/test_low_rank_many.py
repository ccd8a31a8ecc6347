"""Several linear layers of one input, each under its factor pair, against the float64 reference and against torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_kernels import _extension, functional, ops, reference
from hybrid_kernels.ops import low_rank_many
from hybrid_kernels.ops.backend import unavailable, use_backend
from tests.support import DEVICE, assert_close_by_scale, compare, make

D = torch.float64
HALVES = [torch.bfloat16, torch.float16]
DTYPES = {
    "auto": [torch.float32, D, *HALVES],
    "eager": [torch.float32, D, *HALVES],
    "cpp": [torch.float32, D],
    "triton": [torch.float32, *HALVES],
    "reference": [torch.float32, D, *HALVES],
}
Layers = tuple[Tensor, list[Tensor], list[Tensor | None], list[Tensor], list[Tensor]]


class Shape(NamedTuple):
    lead: tuple[int, ...]
    in_features: int
    out_features: tuple[int, ...]
    ranks: tuple[int, ...]
    biased: tuple[bool, ...]


SHAPES = {
    "one layer": Shape((5,), 12, (9,), (3,), (True,)),
    "gate and up": Shape((2, 3), 33, (17, 17), (4, 4), (False, False)),
    "q, k and v": Shape((40,), 64, (65, 32, 32), (16, 16, 16), (True, True, True)),
    "all unequal": Shape((130,), 31, (40, 20, 33), (5, 30, 7), (False, True, False)),
    "one row": Shape((1,), 7, (1, 6, 3), (1, 2, 5), (True, False, True)),
    "many ranks": Shape((9,), 20, (12, 7), (60, 200), (False, False)),
    "no leading dimension": Shape((), 8, (6, 3), (2, 2), (False, True)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if unavailable(request.param) is not None:
        pytest.skip(unavailable(request.param))
    with use_backend(request.param):
        yield request.param


every_backend = pytest.mark.parametrize("backend", DTYPES, indirect=True)
fast_backends = pytest.mark.parametrize("backend", ["auto", "eager", "cpp", "triton"], indirect=True)


def draw(shape: Shape, dtype: torch.dtype = torch.float32, factor_dtype: torch.dtype | None = None) -> Layers:
    lead, k, ns, ranks, biased = shape
    factor_dtype = factor_dtype or dtype
    return (
        make(*lead, k, dtype=dtype),
        [make(n, k, dtype=dtype, scale=k**-0.5) for n in ns],
        [make(n, dtype=dtype) if has else None for n, has in zip(ns, biased, strict=True)],
        [make(r, k, dtype=factor_dtype, scale=k**-0.5) for r in ranks],
        [make(n, r, dtype=factor_dtype) for n, r in zip(ns, ranks, strict=True)],
    )


def flat(layers: Layers) -> list[Tensor]:
    x, *lists = layers
    return [x, *(tensor for tensor in chain(*lists) if tensor is not None)]


def nested(tensors: list[Tensor] | tuple[Tensor, ...], biased: tuple[bool, ...]) -> Layers:
    """`flat` undone."""
    x, *rest = tensors
    elements, g = iter(rest), len(biased)
    weights = [next(elements) for _ in range(g)]
    biases = [next(elements) if has else None for has in biased]
    return x, weights, biases, [next(elements) for _ in range(g)], [next(elements) for _ in range(g)]


def leaves_of(layers: Layers) -> tuple[list[Tensor], Layers]:
    leaves = [tensor.detach().requires_grad_() for tensor in flat(layers)]
    return leaves, nested(leaves, tuple(bias is not None for bias in layers[2]))


def joined(function: Callable[..., list[Tensor]], biased: tuple[bool, ...]) -> Callable[..., Tensor]:
    """``function`` of single tensors, and all its results in one; factors rounded to the dtype of x."""

    def call(*tensors: Tensor) -> Tensor:
        x, weights, biases, downs, ups = nested(tensors, biased)
        if function is reference.low_rank_linear_many:
            downs, ups = ([factor.to(x.dtype) for factor in factors] for factors in (downs, ups))
        return torch.cat([y.flatten() for y in function(x, weights, biases, downs, ups)])

    return call


def compare_layers(biased: tuple[bool, ...], draw_layers: Callable[[], Layers]) -> None:
    compare(
        joined(functional.low_rank_linear_many, biased),
        joined(reference.low_rank_linear_many, biased),
        lambda: flat(draw_layers()),
    )


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(backend, dtype) for backend, dtypes in DTYPES.items() for dtype in dtypes],
    indirect=["backend"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_every_gradient(shape, backend, dtype) -> None:
    compare_layers(SHAPES[shape].biased, lambda: draw(SHAPES[shape], dtype))


@pytest.mark.parametrize("backend", ["auto", "eager", "triton", "reference"], indirect=True)
@pytest.mark.parametrize("dtype", HALVES)
def test_factors_wider_than_the_input(dtype, backend) -> None:
    """Also those of one layer wider than another's: each gradient is in the dtype of its factor."""
    shape = SHAPES["all unequal"]

    def layers() -> Layers:
        x, weights, biases, downs, ups = draw(shape, dtype, torch.float32)
        return x, weights, biases, [downs[0].to(dtype), *downs[1:]], [ups[0].to(dtype), *ups[1:]]

    compare_layers(shape.biased, layers)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_gradients_of_wider_factors_are_not_rounded_to_the_input_by_triton(backend) -> None:
    shape = SHAPES["gate and up"]
    leaves, arguments = leaves_of(draw(shape, torch.bfloat16, torch.float32))
    loss = sum(y.float().sin().sum() for y in functional.low_rank_linear_many(*arguments))
    for gradient in torch.autograd.grad(loss, leaves[3:]):
        assert not torch.equal(gradient, gradient.bfloat16().float())


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*product(("auto", "cpp"), (torch.float32, D)), ("eager", torch.bfloat16), ("triton", torch.float32)],
    indirect=["backend"],
)
def test_any_strides_of_inputs(backend, dtype) -> None:
    def layers() -> Layers:
        return (
            make(12, 20, dtype=dtype).t()[:, ::2],
            [make(6, 8, dtype=dtype).t(), make(7, 12, dtype=dtype)[:, ::2]],
            [make(16, dtype=dtype)[::2], None],
            [make(6, 3, dtype=dtype).t(), make(4, 12, dtype=dtype)[:, 6:]],
            [make(3, 8, dtype=dtype).t(), make(7, 8, dtype=dtype)[:, ::2]],
        )

    compare_layers((True, False), layers)


def gradients_of(
    function: Callable[..., list[Tensor]], layers: Layers, dys: list[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of all tensors where no use is made of a result whose dy is None."""
    leaves, arguments = leaves_of(layers)
    ys = function(*arguments)
    used = [(y, dy.to(y.dtype)) for y, dy in zip(ys, dys, strict=True) if dy is not None]
    return list(torch.autograd.grad([y for y, _ in used], leaves, [dy for _, dy in used], allow_unused=True))


def doubled(layers: Layers) -> Layers:
    return nested([tensor.double() for tensor in flat(layers)], tuple(bias is not None for bias in layers[2]))


def compare_gradients(layers: Layers, dys: list[Tensor | None]) -> list[Tensor | None]:
    mine = gradients_of(functional.low_rank_linear_many, layers, dys)
    plain = gradients_of(reference.low_rank_linear_many, layers, dys)
    truth = gradients_of(reference.low_rank_linear_many, doubled(layers), dys)
    assert [gradient is None for gradient in mine] == [gradient is None for gradient in truth]
    for one, simple, true in zip(mine, plain, truth, strict=True):
        if true is not None:
            assert_close_by_scale(one, true, simple, 3)
    return mine


@fast_backends
def test_any_strides_of_gradients(backend) -> None:
    shape = Shape((4, 20), 33, (17, 9, 12), (4, 5, 3), (True, False, True))
    transposed, every_other = make(17, 20, 4).permute(2, 1, 0), make(4, 20, 24)[..., ::2]
    compare_gradients(draw(shape), [transposed, make(9).expand(4, 20, 9), every_other])
    compare_gradients(draw(shape), [make(4, 1, 17).expand(4, 20, 17), make(()).expand(4, 20, 9), every_other])


class Shapes(TorchDispatchMode):
    """Of the tensors that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.made.append((str(function), result.shape))
        return result


@fast_backends
@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2], [1, 2]])
def test_unused_results_take_no_part_in_the_backward(used, backend) -> None:
    shape = Shape((2, 20), 33, (17, 9, 12), (4, 5, 3), (True, True, True))
    dys = [make(2, 20, n) if index in used else None for index, n in enumerate(shape.out_features)]
    layers = draw(shape)
    compare_gradients(layers, dys)
    leaves, arguments = leaves_of(layers)
    ys = functional.low_rank_linear_many(*arguments)
    with Shapes() as shapes:
        loss_of = [ys[index] for index in used]
        torch.autograd.grad(loss_of, leaves, [dys[index] for index in used], allow_unused=True)
    assert shapes.made
    for index in set(range(3)) - set(used):
        sizes = {(2, 20, shape.out_features[index]), (40, shape.out_features[index])}
        assert not [entry for entry in shapes.made if tuple(entry[1]) in sizes]


@every_backend
def test_no_rows(backend) -> None:
    layers = draw(Shape((2, 0), 12, (9, 5), (3, 2), (True, False)))
    leaves, arguments = leaves_of(layers)
    ys = functional.low_rank_linear_many(*arguments)
    assert [y.shape for y in ys] == [(2, 0, 9), (2, 0, 5)]
    gradients = torch.autograd.grad(sum(y.sum() for y in ys), leaves)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
    assert not any(g.any() for g in gradients)


@fast_backends
@pytest.mark.parametrize("needed", range(11))
def test_one_gradient_alone_is_that_of_all(needed, backend) -> None:
    shape = Shape((20,), 12, (9, 5), (3, 2), (True, True))
    layers = draw(shape)
    dys = [make(20, n) for n in shape.out_features]
    if needed == 9:  # what a frozen model with adapters needs: x and the factors
        chosen = [0, *range(5, 9)]
    elif needed == 10:  # its first layer
        chosen = [*range(5, 9)]
    else:
        chosen = [needed]
    every = gradients_of(functional.low_rank_linear_many, layers, dys)
    tensors = [tensor.detach().requires_grad_(index in chosen) for index, tensor in enumerate(flat(layers))]
    ys = functional.low_rank_linear_many(*nested(tensors, shape.biased))
    computed = torch.autograd.grad(
        [y for y in ys if y.requires_grad],
        [tensors[index] for index in chosen],
        [dy for y, dy in zip(ys, dys, strict=True) if y.requires_grad],
    )
    for index, gradient in zip(chosen, computed, strict=True):
        torch.testing.assert_close(gradient, every[index])


@fast_backends
def test_of_the_activations_x_and_p_alone_are_saved(backend) -> None:
    shape = SHAPES["q, k and v"]
    layers = draw(shape)
    _, arguments = leaves_of(layers)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        functional.low_rank_linear_many(*arguments)
    given = {tensor.data_ptr() for tensor in flat(layers)}
    assert layers[0].data_ptr() in {tensor.data_ptr() for tensor in saved}
    assert [tuple(t.shape) for t in saved if t.data_ptr() not in given] == [(40, sum(shape.ranks))]


@fast_backends
def test_backward_twice_and_inputs_left_alone(backend) -> None:
    layers = draw(SHAPES["all unequal"])
    leaves, arguments = leaves_of(layers)
    copies = [leaf.detach().clone() for leaf in leaves]
    loss = sum(y.sin().sum() for y in functional.low_rank_linear_many(*arguments))
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.equal(one, other)
    for leaf, copy in zip(leaves, copies, strict=True):
        assert torch.equal(leaf, copy)


@every_backend
def test_without_gradients(backend) -> None:
    _, arguments = leaves_of(draw(SHAPES["all unequal"]))
    ys = functional.low_rank_linear_many(*arguments)
    with torch.no_grad():
        free = functional.low_rank_linear_many(*arguments)
    for one, other in zip(ys, free, strict=True):
        assert one.requires_grad and not other.requires_grad
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["auto", "eager", "triton"], indirect=True)
def test_autocast_decides_the_dtype_and_stays_out_of_the_backward(backend) -> None:
    layers = draw(SHAPES["q, k and v"])

    def results(inside: bool) -> list[Tensor]:
        leaves, arguments = leaves_of(layers)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            ys = functional.low_rank_linear_many(*arguments)
            total = torch.cat(ys, dim=-1).float().sin().sum()
            if inside:
                return [*ys, *torch.autograd.grad(total, leaves)]
        return [*ys, *torch.autograd.grad(total, leaves)]

    narrow = [tensor.bfloat16() for tensor in flat(layers)]
    expected = functional.low_rank_linear_many(*nested(narrow, (True,) * 3))
    inside = results(True)
    for one, other in zip(inside, results(False), strict=True):
        assert torch.equal(one, other)
    assert all(gradient.dtype == torch.float32 for gradient in inside[3:])
    for y, same in zip(inside[:3], expected, strict=True):
        assert torch.equal(y, same)


@fast_backends
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_around_the_backward_alone_changes_nothing(compiled, backend) -> None:
    leaves, arguments = leaves_of(draw(SHAPES["q, k and v"]))
    operator = functional.low_rank_linear_many
    if compiled:
        operator = torch.compile(operator, fullgraph=True, backend="eager")
    loss = sum(y.sin().sum() for y in operator(*arguments))
    outside = torch.autograd.grad(loss, leaves, retain_graph=True)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        inside = torch.autograd.grad(loss, leaves)
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)


def with_some_unused(x, weights, biases, downs, ups) -> Tensor:
    first, *_, last = functional.low_rank_linear_many(x, weights, biases, downs, ups)
    return first.sin().sum() + last.cos().sum()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("shape", ["all unequal", "q, k and v", "gate and up"])
def test_compile_fullgraph(shape, dynamic) -> None:
    leaves, arguments = leaves_of(draw(SHAPES[shape], D))
    compiled = torch.compile(with_some_unused, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    value, truth = compiled(*arguments), with_some_unused(*arguments)
    torch.testing.assert_close(value, truth)
    mine, true = (torch.autograd.grad(result, leaves, allow_unused=True) for result in (value, truth))
    for one, other in zip(mine, true, strict=True):
        if other is None:  # torch.compile may make zeros of it
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other)


def test_fake_tensors_reach_no_kernel() -> None:
    with FakeTensorMode():
        leaves, arguments = leaves_of(draw(SHAPES["q, k and v"]))
        ys = functional.low_rank_linear_many(*arguments)
        gradients = torch.autograd.grad(sum(y.sum() for y in ys), leaves)
    assert [tuple(y.shape) for y in ys] == [(40, 65), (40, 32), (40, 32)]
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]


class Layer(torch.nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        _, *lists = draw(shape)
        self.lists = [[None if t is None else torch.nn.Parameter(t) for t in each] for each in lists]
        for index, parameter in enumerate(p for each in self.lists for p in each if p is not None):
            self.register_parameter(f"parameter_{index}", parameter)

    def forward(self, x: Tensor) -> list[Tensor]:
        return functional.low_rank_linear_many(x, *self.lists)


def test_export_keeps_one_operator() -> None:
    shape = SHAPES["gate and up"]
    layer, x = Layer(shape), make(2, 3, 33)
    program = torch.export.export(layer, (x,))
    targets = [str(node.target) for node in program.graph.nodes if "hybrid_kernels" in str(node.target)]
    assert targets == ["hybrid_kernels.low_rank_linear_many.default"]
    for one, other in zip(program.module()(x), layer(x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("factor_dtype", [D, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_opcheck(shape, factor_dtype) -> None:
    dtype = D if factor_dtype == D else torch.bfloat16
    _, (x, weights, biases, downs, ups) = leaves_of(draw(SHAPES[shape], dtype, factor_dtype))
    some = [bias for bias in biases if bias is not None]
    biases = some if len(some) == len(weights) else []
    operators = torch.ops.hybrid_kernels
    torch.library.opcheck(operators.low_rank_linear_many.default, (x, weights, biases, downs, ups))
    *ys, p = ops.low_rank_linear_many(x, weights, biases, downs, ups)
    given = ([torch.randn_like(y) for y in ys], x, weights, downs, ups, p)
    plain = [[t.detach() for t in each] if isinstance(each, list) else each.detach() for each in given]
    for needs in product((True, False), repeat=3):
        if any(needs):
            torch.library.opcheck(operators.low_rank_linear_many_backward.default, (*plain, list(needs)))


def test_gradcheck() -> None:
    shape = Shape((2, 3), 6, (5, 4, 3), (2, 1, 3), (True, True, True))
    leaves, _ = leaves_of(draw(shape, D))
    assert torch.autograd.gradcheck(joined(functional.low_rank_linear_many, shape.biased), leaves)


def test_second_derivatives_raise_instead_of_being_wrong() -> None:
    leaves, arguments = leaves_of(draw(SHAPES["gate and up"]))
    loss = sum(y.sin().sum() for y in functional.low_rank_linear_many(*arguments))
    (dx,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once differentiable"):
        dx.sum().backward()


@pytest.mark.skipif(_extension.load() is not None, reason=str(_extension.load()))
@pytest.mark.parametrize(
    ("rows", "ranks", "dtype", "factor_dtype", "expected"),
    [
        (512, (16, 16, 16), torch.float32, torch.float32, "cpp"),
        (512, (16, 16, 16), D, D, "cpp"),
        (512, (16, 16, 16), torch.float32, D, "eager"),
        (512, (16, 16, 16), torch.bfloat16, torch.bfloat16, "eager"),
        (512, (16, 1, 16), torch.float32, torch.float32, "eager"),
        (512, (128, 128, 128), torch.float32, torch.float32, "cpp"),
        (512, (16, 300, 16), torch.float32, torch.float32, "eager"),
        (1, (16, 16, 16), torch.float32, torch.float32, "eager"),
    ],
)
def test_what_runs_by_itself(monkeypatch, rows, ranks, dtype, factor_dtype, expected) -> None:
    monkeypatch.setattr(_extension, "_cpu_capability", lambda: "AVX2")
    x, weights, _, downs, ups = draw(Shape((rows,), 20, (16,) * 3, ranks, (False,) * 3), dtype, factor_dtype)
    x, weights, downs, ups = x.cpu(), *([t.cpu() for t in each] for each in (weights, downs, ups))
    with use_backend("auto"):
        assert low_rank_many._linear.select(x, weights, [], downs, ups).backend == expected
        backward = low_rank_many._backward.select(weights, x, weights, downs, ups, x, [True] * 3)
        assert backward.backend == expected


def test_a_request_that_cannot_be_met_says_why() -> None:
    x, weights, biases, downs, ups = draw(Shape((4,), 8, (6, 6), (4, 300), (False, False)))
    if unavailable("triton") is None:
        with (
            use_backend("triton"),
            pytest.raises(RuntimeError, match="rank = 300, the kernel takes 1 to 256"),
        ):
            functional.low_rank_linear_many(x, weights, biases, downs, ups)
    if unavailable("cpp") is None:
        wider = [down.double() for down in downs]
        with use_backend("cpp"), pytest.raises(RuntimeError, match=r"a factor torch\.float64"):
            functional.low_rank_linear_many(x, weights, biases, wider, ups)
