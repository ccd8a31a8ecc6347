"""torch.compile and torch.export."""

import pytest
import torch
from torch import nn

from hybrid_kernels import accelerate, restore
from tests.adapters.acceleration.support import tokens
from tests.adapters.stack.support import KINDS, assert_as_plain, fast, plain, step

# A whole model takes inductor's C++ compiler half a minute; a block of it, which has every operator in it, goes there.
GRAPH = {"backend": "aot_eager", "fullgraph": True}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_model_is_one_graph_and_stays_it(kind) -> None:
    model = fast(kind)
    compiled = torch.compile(model, **GRAPH)
    assert_as_plain(kind, step(compiled))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-2)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (2, 3):
            optimizer.step()
            step(compiled, tokens(seed=seed))
    assert graphs() == 1
    compiled.eval()
    with torch.no_grad():
        y = compiled(tokens()).logits
    assert graphs() == 2  # one more for evaluation
    torch.testing.assert_close(y, model(tokens()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_under_inductor(kind) -> None:
    def run(model: nn.Module, compiled: bool = False) -> list[torch.Tensor]:
        mlp = model.base_model.model.model.layers[0].mlp
        block = torch.compile(mlp, fullgraph=True) if compiled else mlp
        first = next(mlp.parameters())
        x = torch.randn(40, 32, generator=torch.Generator().manual_seed(4)).to(first.dtype).requires_grad_()
        y = block(x)
        parameters = [p for p in mlp.parameters() if p.requires_grad]
        dy = torch.randn(40, 32, generator=torch.Generator().manual_seed(5)).to(first.dtype)
        dx, *others = torch.autograd.grad(y, [x, *parameters], dy)
        return [y.detach(), dx, torch.cat([g.flatten() for g in others])]

    assert_as_plain(kind, run(fast(kind), compiled=True), run)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_in_one_graph(kind) -> None:
    model = fast(kind)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # a graph break, of use to reentrant checkpointing alone
    assert_as_plain(kind, step(torch.compile(model, **GRAPH)))


@pytest.mark.parametrize("kind", ["hra"])
def test_compiled_before_it_is_accelerated_and_restored(kind) -> None:
    model = plain(kind)
    compiled = torch.compile(model, **GRAPH)
    stock = step(compiled)
    accelerate(compiled)
    assert_as_plain(kind, step(compiled))
    assert graphs() == 2
    assert restore(compiled)
    for before, after in zip(stock, step(compiled), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("kind", "strict"),
    [*((kind, False) for kind in KINDS), ("lora", True), ("hra", True), ("hybrid_unitary", True)],
)
def test_export(kind, strict) -> None:
    model = fast(kind).eval()
    with torch.no_grad():
        y = model(tokens()).logits
        program = torch.export.export(model, (), {"input_ids": tokens()}, strict=strict)
        exported = program.module()(input_ids=tokens()).logits
    torch.testing.assert_close(exported, y)
    # On the fast path, not as PEFT has it.
    assert any("hybrid_kernels" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["dora", "hra"])
def test_compiled_layers_share_their_projection(kind, checkpointing) -> None:
    names = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        for module in graph.modules():
            names.extend(str(n.target) for n in module.graph.nodes if n.op == "call_function")
        return graph.forward

    model = fast(kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    torch.compile(model, backend=backend, fullgraph=True)(tokens())
    assert sum("low_rank_linear_many" in name for name in names) == 2  # q, k and v; gate and up
    assert sum("low_rank_linear." in name for name in names) == 2


def test_a_compiled_block_holds_on_to_nothing_and_takes_its_input_again() -> None:
    mlp = fast("lora").base_model.model.model.layers[0].mlp
    compiled = torch.compile(mlp, **GRAPH)
    x = torch.randn(3, 32)
    y = mlp(x)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), y)
        assert not any(vars(x).values())
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(x), y)
