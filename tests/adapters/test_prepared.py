"""The Cayley transforms of all layers of a model, made together before its forward."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model, inject_adapter_in_model
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from hybrid_kernels import use_backend
from hybrid_kernels.adapters.layer import HybridLayer
from hybrid_kernels.adapters.prepared import PreparedFactors
from hybrid_kernels.nn.adapter import HybridAdapter
from hybrid_kernels.ops.backend import Operator, unavailable
from tests.adapters.test_peft_method import config
from tests.support import assert_close_by_scale

GROUPS = 2  # one layer's blocks are of another size, see `make`
LAYERS = 6
CALLS = {"real": "cayley_packed_forward", "complex": "cayley_forward"}


def adapters(model) -> list[HybridAdapter]:
    layers = [layer for layer in model.modules() if isinstance(layer, HybridLayer)]
    return [a for layer in layers for a in layer.hybrid_adapters.values() if a.has_rotation]


def make(make_base, kind: str = "real") -> nn.Module:
    """A model in training mode, away from its start, with blocks of two sizes; nothing in it is random."""
    torch.manual_seed(3)
    base = make_base()
    base.config.problem_type = "single_label_classification"  # else set in the first forward
    base.config.use_cache = False
    options = {"unitary_modules": ["query", "output.dense"], "unitary_complex": kind == "complex"}
    model = get_peft_model(base, config(**options, unitary_block_size=8))
    model.base_model.model.bert.encoder.layer[0].attention.self.query.hybrid_adapters["default"] = (
        HybridAdapter(32, 32, rank=4, reflections=4, unitary_block_size=2, unitary_complex=kind == "complex")
    )
    for adapter in adapters(model):
        nn.init.normal_(adapter.cayley_skew, std=0.5)
        nn.init.normal_(adapter.lora_B, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


@pytest.fixture(params=CALLS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The Cayley transforms that run, by the operator's name; the gradients are left out."""
    ran: list[str] = []
    original = Operator.__call__

    def recording(self, *args):
        if self.name in CALLS.values():
            ran.append(self.name)
        return original(self, *args)

    monkeypatch.setattr(Operator, "__call__", recording)
    return ran


def results(model, batch) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def apart(model, batch) -> list[torch.Tensor]:
    """The results without preparation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedFactors, "_prepare_rotations", lambda _: None)
        return results(model, batch)


def assert_same_bits(mine: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(mine) == len(other)
    assert all(torch.equal(one, two) for one, two in zip(mine, other, strict=True))


def assert_right(mine: list[torch.Tensor], plain: list[torch.Tensor], model, batch) -> None:
    with use_backend("reference"):
        truth = results(copy.deepcopy(model).double(), batch)
    flat = [torch.cat([tensor.flatten() for tensor in each]) for each in (mine, truth, plain)]
    assert_close_by_scale(*flat, 3)


def nothing_left(model) -> bool:
    return all(
        a.prepared_rotation is None and a.traced_rotation is None and a.prepared_reflections is None
        for a in adapters(model)
    )


needs_cpp = pytest.mark.skipif(unavailable("cpp") is not None, reason=str(unavailable("cpp")))


@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_one_call_for_all_layers_of_a_block_size(kind, backend, make_base, batch, calls) -> None:
    if unavailable(backend) is not None:
        pytest.skip(unavailable(backend))
    model = make(make_base, kind)
    with use_backend(backend):
        together = results(model, batch)
        assert calls == [CALLS[kind]] * GROUPS
        assert nothing_left(model)
        calls.clear()
        other = apart(model, batch)
        assert calls == [CALLS[kind]] * LAYERS
    if backend == "cpp":
        assert_same_bits(together, other)
    else:
        assert_right(together, other, model, batch)


def test_the_reference_backend_is_left_alone(make_base, batch, calls) -> None:
    model = make(make_base)
    with use_backend("reference"):
        assert_same_bits(results(model, batch), apart(model, batch))
    assert not calls


@needs_cpp
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_makes_them_again_to_the_same_bits(
    use_reentrant, kind, make_base, batch, calls
) -> None:
    model = make(make_base, kind)
    with use_backend("cpp"):
        expected = results(model, batch)
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        calls.clear()
        assert_same_bits(results(model, batch), expected)
    assert len(calls) == GROUPS + LAYERS  # together in the forward, one by one where layers run anew


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_the_graph_has_one_node_a_block_size(checkpointing, kind, make_base, batch) -> None:
    model = make(make_base, kind)
    nodes = []

    def keep(graph, _):
        nodes.append([str(n.target) for n in graph.graph.nodes if "cayley" in str(n.target)])
        return graph

    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()  # whose hook torch.compile does not trace
    plain = apart(model, batch)
    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    first = results(compiled, batch)
    forward, backward = nodes
    name = "cayley_packed" if kind == "real" else "cayley"
    assert forward == [f"hybrid_kernels.{name}.default"] * GROUPS
    assert backward.count("hybrid_kernels.cayley_backward.default") == GROUPS
    assert f"hybrid_kernels.{name}.default" not in backward
    assert nothing_left(model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        second = results(compiled, batch)
        results(model, batch)  # not compiled: leaves nothing that a compiled forward would stumble upon
        results(compiled, batch)
    assert_same_bits(first, second)
    assert_right(first, plain, model, batch)


def test_compiled_evaluation_too(make_base, batch) -> None:
    model = make(make_base).eval()
    nodes = []

    def keep(graph, _):
        nodes.extend(str(n.target) for n in graph.graph.nodes)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
    assert nodes.count("hybrid_kernels.cayley_packed.default") == GROUPS


def test_graph_breaks_lose_nothing(make_base, batch) -> None:
    model = make(make_base)
    expected = results(model, batch)
    module = model.base_model.model.bert.encoder.layer[1].attention.output
    module.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    compiled = torch.compile(model, backend="aot_eager")
    for mine, true in zip(results(compiled, batch), expected, strict=True):
        torch.testing.assert_close(mine, true)
    assert nothing_left(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_compiled_by_themselves_make_their_own(checkpointing, kind, make_base, batch) -> None:
    """A graph that took them would save other tensors than the one that runs anew without them."""
    model = make(make_base, kind)
    expected = results(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch._dynamo.reset()  # all layers share one code object, of which it keeps eight variants
    for block in model.base_model.model.bert.encoder.layer:
        block.attention.self.query.compile(backend="aot_eager", fullgraph=True)
    for mine, true in zip(results(model, batch), expected, strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stale_after_an_error(error, make_base, batch) -> None:
    model = make(make_base)

    def fail(*_):
        raise error

    handle = model.base_model.model.classifier.register_forward_pre_hook(fail)
    with pytest.raises(error):
        model(**batch)
    handle.remove()
    if error is ValueError:
        assert nothing_left(model)
    for adapter in adapters(model):
        nn.init.normal_(adapter.cayley_skew)
    with torch.no_grad():
        mine = model.eval()(**batch).logits
        assert nothing_left(model)
        with use_backend("reference"):
            torch.testing.assert_close(mine, copy.deepcopy(model)(**batch).logits)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_in_the_middle_of_a_forward_has_nothing_prepared(how, make_base, batch) -> None:
    model = make(make_base)
    copies = []

    def copy_model(*_):
        handle.remove()
        assert not nothing_left(model)
        if how == "deepcopy":
            copies.append(copy.deepcopy(model))
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copies.append(torch.load(file, weights_only=False))

    handle = model.base_model.model.classifier.register_forward_pre_hook(copy_model)
    expected = results(model, batch)
    (other,) = copies
    assert nothing_left(other)
    assert_same_bits(results(other, batch), expected)


def test_merging_after_an_interrupted_forward_is_never_stale(make_base, batch) -> None:
    model = make(make_base)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.base_model.model.classifier.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    handle.remove()
    for adapter in adapters(model):
        nn.init.normal_(adapter.cayley_skew)
    with torch.no_grad(), use_backend("reference"):
        expected = copy.deepcopy(model).eval()(**batch).logits
        merged = model.merge_and_unload().eval()
        torch.testing.assert_close(merged(**batch).logits, expected)


def test_an_adapter_that_transformers_adds_joins_the_others(make_base, batch, calls) -> None:
    model = make_base().train()
    options = {"task_type": None, "target_modules": ["query"], "unitary_modules": ["query"]}
    for name in ("first", "second"):  # as Transformers' add_adapter does: a tuner each
        inject_adapter_in_model(config(**options, unitary_block_size=8), model, name)
    results(model, batch)
    assert len(calls) == 1
    assert nothing_left(model)


def test_evaluation_between_steps_is_never_stale(make_base, batch, calls) -> None:
    model = make(make_base)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    for _ in range(2):
        results(model.train(), batch)
        optimizer.step()
        with torch.no_grad():
            calls.clear()
            mine = [model.eval()(**batch).logits for _ in range(2)]
            assert len(calls) == LAYERS  # once: the cache has them the second time
            with use_backend("reference"):
                true = copy.deepcopy(model)(**batch).logits
        for each in mine:
            torch.testing.assert_close(each, true)


@needs_cpp
def test_two_forwards_then_two_backwards_with_a_step_between(make_base, batch) -> None:
    model = make(make_base)
    trained = [p for p in model.parameters() if p.requires_grad]
    skews = [adapter.cayley_skew for adapter in adapters(model)]

    def move() -> None:
        with torch.no_grad():
            for skew in skews:
                skew.mul_(-2.0)

    with use_backend("cpp"):
        start = [skew.detach().clone() for skew in skews]
        expected = [torch.autograd.grad(model(**batch).loss, skews)]
        move()
        expected.append(torch.autograd.grad(model(**batch).loss, skews))
        with torch.no_grad():
            for skew, value in zip(skews, start, strict=True):
                skew.copy_(value)
        losses = [model(**batch).loss]
        move()
        losses.append(model(**batch).loss)
        assert len(trained) > len(skews)
        for loss, true in zip(losses, expected, strict=True):
            assert_same_bits(list(torch.autograd.grad(loss, skews)), list(true))


class Shard(nn.Parameter):
    """A parameter that is not a plain one, as DTensor is not."""


def test_special_parameters_are_taken_by_their_layer(make_base, batch, calls) -> None:
    model = make(make_base)
    expected = results(model, batch)
    special = adapters(model)[2]
    special.cayley_skew = Shard(special.cayley_skew.detach())
    assert type(special.cayley_skew) is Shard
    calls.clear()
    for mine, true in zip(results(model, batch), expected, strict=True):
        torch.testing.assert_close(mine, true)
    assert len(calls) == GROUPS + 1


@pytest.mark.parametrize("stand_in", [lambda p: p.new_empty(0), lambda p: p.to("meta")])
def test_parameters_that_are_elsewhere_until_their_layer_runs(stand_in, make_base, batch, calls) -> None:
    model = make(make_base)
    expected = results(model, batch)
    layer = model.base_model.model.bert.encoder.layer[1].attention.self.query
    parameter = layer.adapter("default").cayley_skew
    layer.adapter("default").cayley_skew = nn.Parameter(stand_in(parameter.detach()))
    layer.register_forward_pre_hook(
        lambda *_: setattr(layer.adapter("default"), "cayley_skew", parameter), prepend=True
    )
    calls.clear()
    for mine, true in zip(results(model, batch), expected, strict=True):
        torch.testing.assert_close(mine, true)
    assert len(calls) == GROUPS + 1


def test_what_no_forward_applies_is_not_made(make_base, batch, calls) -> None:
    model = make(make_base)
    with model.disable_adapter():
        model(**batch)
    assert not calls
    model.merge_adapter()
    calls.clear()
    model(**batch)
    assert not calls
    model.unmerge_adapter()
    calls.clear()
    adapters(model)[1].cayley_skew.requires_grad_(False)  # frozen ones are made along with the others
    results(model, batch)
    assert len(calls) == GROUPS
    assert adapters(model)[1].cayley_skew.grad is None


def test_of_several_adapters_the_active_one(make_base, batch, calls) -> None:
    options = {"task_type": None, "target_modules": ["query", "value"], "unitary_modules": ["query"]}
    model = get_peft_model(make_base(), config(**options, unitary_block_size=8)).train()
    model.add_adapter("second", config(**options, unitary_block_size=4))
    model.add_adapter("third", config(task_type=None, target_modules=["query"]))
    for name, expected in (("default", 1), ("second", 1), ("third", 0)):
        model.set_adapter(name)
        calls.clear()
        results(model, batch)
        assert len(calls) == expected
    assert nothing_left(model)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@needs_cpp
def test_data_parallel(one_process, make_base, batch, calls) -> None:
    model = make(make_base)
    with use_backend("cpp"):
        expected = results(model, batch)
        calls.clear()
        parallel = nn.parallel.DistributedDataParallel(model)
        assert_same_bits(results(parallel, batch), expected)
    assert len(calls) == GROUPS


def replica(model: nn.Module) -> nn.Module:
    """As torch.nn.DataParallel makes them on each GPU: modules that share what is no tensor, hooks among it."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, copied in replicas.items():
        for name, child in module._modules.items():
            setattr(copied, name, replicas.get(child))
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            setattr(copied, name, tensor if tensor is None else tensor.view_as(tensor))
    return replicas[model]


@needs_cpp
def test_replicas_of_data_parallel_leave_the_model_alone(make_base, batch, calls) -> None:
    model = make(make_base)
    with use_backend("cpp"):
        expected = results(model, batch)
        model.zero_grad()
        calls.clear()
        loss = replica(model)(**batch).loss
        loss.backward()
    assert_same_bits([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)], expected)
    assert len(calls) == LAYERS


@needs_cpp
def test_sharded(one_process, make_base, batch, calls) -> None:
    from torch.distributed.fsdp import fully_shard

    model = make(make_base)
    with use_backend("cpp"):
        expected = results(model, batch)
        mesh = dist.init_device_mesh("cpu", (1,))
        for block in model.base_model.model.bert.encoder.layer:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        calls.clear()
        sharded = results(model, batch)
    assert len(calls) == LAYERS
    assert_same_bits(
        [each.full_tensor() if hasattr(each, "full_tensor") else each for each in sharded], expected
    )
