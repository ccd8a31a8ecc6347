import pytest
import torch

import hybrid_kernels as hk
from hybrid_kernels.cases import layers, peers
from hybrid_kernels.cases.base import PASSES, flattened

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SHAPE = {"m": 6, "k": 64, "n": 96}
HYBRIDS = ["hybrid 16 + 16", "hybrid, eager", "plain PyTorch 16 + 16"]


def cases(**options):
    options = {"dtype": torch.float64, "shapes": [SHAPE], "compiled": False, **options}
    return {case.name: case for case in layers.cases(CPU, **options)}


def results(side):
    """The outputs and the gradients of a side, on its backend."""
    with hk.use_backend(side.backend, variant=side.variant):
        outputs = flattened(side.forward())
        return [*outputs, *torch.autograd.grad(outputs, side.leaves, side.gradients)]


@pytest.mark.parametrize("options", [{}, {"features": True}])
def test_every_side_runs_every_pass_with_finite_gradients(options):
    for case in cases(dtype=torch.float32, **options).values():
        assert case.passes == PASSES and case.shape == SHAPE and case.kind == "layer"
        sides = {name: build() for name, build in case.builders().items()}
        assert {case.floor, case.ours} <= set(sides)
        for name, side in sides.items():
            for part in PASSES:
                step = side.step(part)
                step()
                step()
            assert side.parameters == sum(leaf.numel() for leaf in side.leaves[1:])
            for result in results(side):
                assert result.isfinite().all() and result.any(), f"{case.id}, {name}"


def test_all_sides_of_a_case_share_input_and_weights():
    sides = [build() for build in cases()["linear"].builders().values()]
    assert len({id(side.leaves[0]) for side in sides}) == len({id(side.gradients[0]) for side in sides}) == 1
    frozen, zero_update = sides[0], layers.Layer("linear", SHAPE, torch.float64, CPU)
    torch.testing.assert_close(frozen.forward(), zero_update.linear()(zero_update.x), rtol=0, atol=0)


def test_a_case_draws_the_same_numbers_each_time_and_lazily(monkeypatch):
    case = cases()["linear"]
    first, second = (results(case.builders()["hybrid 16 + 16"]()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(layers, "Layer", None)
    cases()


def test_the_hybrid_and_the_same_algebra_in_plain_pytorch_agree():
    builders = cases()["linear"].builders()
    ours, eager, plain = (results(builders[name]()) for name in HYBRIDS)
    for other in (eager, plain):
        torch.testing.assert_close(other, ours)


def test_compiled_and_plain_pytorch_agree_and_run_their_backward_twice():
    builders = cases(compiled=True, peers=False)["linear"].builders()
    compiled, plain = builders["torch.compile 16 + 16"](), builders["plain PyTorch 16 + 16"]()
    step = compiled.step("backward")
    step()
    step()
    torch.testing.assert_close(results(compiled), results(plain))


@pytest.mark.parametrize("method", peers.ACCELERATED)
def test_stock_and_accelerated_layers_agree(method):
    case = cases()[f"accelerate-{method.replace(' ', '-')}"]
    assert (case.floor, case.ours) == ("frozen layer", f"accelerated {method}")
    sides = {name: build() for name, build in case.builders().items()}
    assert list(sides) == [
        "frozen layer",
        f"PEFT {method}",
        f"accelerated {method}",
        f"accelerated {method}, eager",
    ]
    assert sides[f"accelerated {method}, eager"].backend == "eager"
    stock = results(sides[f"PEFT {method}"])
    for name in (f"accelerated {method}", f"accelerated {method}, eager"):
        torch.testing.assert_close(results(sides[name]), stock)


def test_parameters_are_those_of_the_methods():
    counts = {name: build().parameters for name, build in cases()["linear"].builders().items()}
    k, n = SHAPE["k"], SHAPE["n"]
    assert counts["frozen layer"] == 0
    assert counts["hybrid 16 + 16"] == counts["plain PyTorch 16 + 16"] == 16 * (k + n) + 16 * k
    assert counts["PEFT LoRA r=32"] == 32 * (k + n)
    assert counts["PEFT DoRA r=32"] == 32 * (k + n) + n
    assert counts["PEFT HRA r=16"] == 16 * k
    assert counts["PEFT OFT b=32"] == counts["PEFT OFT b=32 exact"] == k // 32 * (32 * 31 // 2)
    assert counts["PEFT BOFT b=32 m=2"] == 2 * k * 32 + n


def test_features_change_what_they_name():
    builders = cases(features=True)["features"].builders()
    both, learned, dropped, aligned, rotated = (
        builders[name]()
        for name in (
            "hybrid 16 + 16",
            "+ learned mixing",
            "+ dropout 0.05",
            "+ gradient-aligned start",
            "+ unitary rotation b=32",
        )
    )
    k, n = SHAPE["k"], SHAPE["n"]
    assert builders["low rank 16"]().parameters == 16 * (k + n)
    assert builders["reflections 16"]().parameters == 16 * k
    assert both.parameters == dropped.parameters == aligned.parameters
    assert learned.parameters == both.parameters + 1
    assert rotated.parameters == both.parameters + k * 31 // 2
    for side in (learned, both):
        assert torch.equal(side.forward(), side.forward())
    assert not torch.equal(dropped.forward(), dropped.forward())
    assert not torch.allclose(aligned.forward(), both.forward())


def test_reflections_alone_are_those_of_the_chain():
    layer = layers.Layer("features", SHAPE, torch.float64, CPU)
    side = layers._feature_sides(layer, SHAPE, peers=False)["reflections 16"]()
    turned = hk.reference.householder_rotate(layer.x, side.leaves[1])
    torch.testing.assert_close(side.forward(), torch.nn.functional.linear(turned, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("sweep", "varied"),
    [("tokens", "m"), ("width", "kn"), ("rank", ["rank"]), ("reflections", ["reflections"])],
)
def test_a_sweep_changes_its_size_alone(monkeypatch, sweep, varied):
    monkeypatch.setitem(layers.SWEEPS["cpu"], sweep, (32, 64))
    family = layers.cases(CPU, torch.float64, [SHAPE], sweep=sweep)
    assert [case.sweep for case in family] == [sweep, sweep] and len({case.id for case in family}) == 2
    base = {**SHAPE, "rank": 16, "reflections": 16}
    for case, size in zip(family, (32, 64), strict=True):
        assert case.shape == {**base, **dict.fromkeys(varied, size)}
        sides = {name: build() for name, build in case.builders().items()}
        assert list(sides) == [
            "frozen layer", "hybrid", "plain PyTorch", "PEFT LoRA, same rank", "PEFT HRA, same reflections"
        ]  # fmt: skip
        m, k, n, r, reflections = case.shape.values()
        assert sides["hybrid"].parameters == r * (k + n) + reflections * k
        assert sides["PEFT LoRA, same rank"].parameters == (r + reflections) * (k + n)
        assert sides["PEFT HRA, same reflections"].parameters == reflections * k
        assert sides["frozen layer"].forward().shape == (m, n)
        torch.testing.assert_close(results(sides["plain PyTorch"]), results(sides["hybrid"]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shipped_sizes_suit_every_method(device):
    for shape in layers.SHAPES[device]:
        assert shape["k"] % 64 == 0  # two butterfly factors of blocks of 32
    for sizes in layers.SWEEPS[device].values():
        assert len(sizes) == 5 and list(sizes) == sorted(sizes)


def test_work_counts_products_and_what_they_touch():
    m, k, n = 100, 1000, 2000
    shape = {"m": m, "k": k, "n": n}
    operations, bytes_moved = layers.work_of(shape, torch.bfloat16, "forward")
    assert operations == 2 * m * k * n + 2 * m * 32 * (k + n) + 2 * k * n * 16
    assert bytes_moved == 2 * (m * k + k * n + m * n + 32 * (m + k + n))
    both = layers.work_of(shape, torch.bfloat16, "both")
    parts = [layers.work_of(shape, torch.bfloat16, part) for part in ("forward", "backward")]
    assert both == tuple(map(sum, zip(*parts, strict=True)))


def test_without_peers_there_is_no_peft():
    assert list(cases(peers=False)) == ["linear"]
    assert not any("PEFT" in side for side in cases(peers=False)["linear"].builders())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="sweep is 'depth'; it may be one of 'tokens', 'width', 'rank'"):
        layers.cases(CPU, torch.float32, sweep="depth")
    for shape in ({"m": 2, "k": 0, "n": 3}, {"m": 2, "k": 3}):
        with pytest.raises(ValueError, match=r"shapes has .*; each must have m, k and n of at least 1"):
            layers.cases(CPU, torch.float32, [shape])
