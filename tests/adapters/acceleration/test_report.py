"""What `accelerate` says it did: methods, backends, layers left alone with a reason; its switch; training with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import hybrid_kernels as hk
from hybrid_kernels.adapters import HybridConfig, HybridTrainer
from hybrid_kernels.adapters.acceleration import AccelerateCallback, accelerate, restore
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer
from tests.adapters.acceleration.support import (
    LLAMA_LINEAR,
    METHODS,
    accelerated_layers,
    adapted,
    llama,
    moved,
    tokens,
    twin,
)


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "base_layer")]


def is_accelerated(model: nn.Module) -> bool:
    return any(isinstance(module, AcceleratedLayer) for module in model.modules())


NAMES = {"lora": "LoRA", "dora": "DoRA", "hra": "HRA", "oft": "OFT", "boft": "BOFT"}


@pytest.mark.parametrize("method", NAMES)
def test_each_layer_is_listed_with_its_method_and_backend(method):
    model = adapted("llama", method)
    report = accelerate(model, share_inputs=False)
    names = [name for name, module in model.named_modules() if hasattr(module, "base_layer")]
    assert [layer.name for layer in report.layers] == names
    assert {layer.method for layer in report.layers} == {NAMES[method]}
    assert all(
        layer.accelerated and layer.reason is None and " on " in layer.backend for layer in report.layers
    )
    (backend,) = {layer.backend for layer in report.layers}
    assert str(report) == f"14 of 14 PEFT layers accelerated\n  14 × {NAMES[method]}: {backend}"


@pytest.mark.parametrize("method, operator", [("lora", "low_rank_linear"), ("oft", "block_rotate")])
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_the_backend_that_was_asked_for_is_the_one_that_is_named(method, operator, backend):
    with hk.use_backend(backend):
        report = accelerate(adapted("llama", method))
    assert {layer.backend for layer in report.layers} == {f"{operator} on {backend}"}


def test_a_backend_that_was_asked_for_and_cannot_run_raises_and_nothing_is_changed():
    model = adapted("llama", "lora").to(torch.float16)
    with (
        hk.use_backend("cpp"),
        pytest.raises(RuntimeError, match="'cpp' was requested but cannot run low_rank"),
    ):
        accelerate(model)
    assert not is_accelerated(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", ["lora", "dora", "hra", "oft", "boft"])
def test_layers_without_an_active_adapter_are_accelerated_and_listed(method):
    model = get_peft_model(llama(), METHODS[method](target_modules=["q_proj"]))
    model.add_adapter("other", METHODS[method](target_modules=["down_proj"]))
    model.set_adapter("other")
    expected = model(input_ids=tokens()).logits
    report = accelerate(model)
    assert len(report.accelerated) == 4
    assert {layer.method for layer in report.layers} == {NAMES[method]}
    torch.testing.assert_close(model(input_ids=tokens()).logits, expected)


def test_a_layer_whose_adapters_were_deleted_is_left_alone():
    model = get_peft_model(llama(), METHODS["oft"](target_modules=["q_proj"]))
    model.add_adapter("other", METHODS["oft"](target_modules=["q_proj", "v_proj"]))
    model.delete_adapter("default")
    model.delete_adapter("other")
    report = accelerate(model)
    assert {layer.reason for layer in report.layers} == {"it has no adapter"}


# --- what is left alone ------------------------------------------------------------------------------------------


class Mixture(nn.Module):
    """An embedding, a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.linear = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.conv(self.embed(ids).mT).mT)


def test_embeddings_and_convolutions_are_left_alone_with_their_reason():
    torch.manual_seed(0)
    model = moved(
        get_peft_model(Mixture(), LoraConfig(r=2, target_modules=["embed", "conv", "linear"]))
    ).eval()
    stock = twin(model)
    report = accelerate(model)
    reasons = {layer.name.rpartition(".")[2]: layer.reason for layer in report.left_alone}
    assert reasons == {
        "embed": "an embedding looks rows up: there is no product to make faster",
        "conv": "peft.tuners.lora.layer.Conv1d on Conv1d has no fast form here",
    }
    text = str(report)
    assert text.startswith("1 of 3 PEFT layers accelerated\n  1 × LoRA: low_rank_linear on ")
    for layer in report.left_alone:
        assert f"left alone: {layer.name} (LoRA): {layer.reason}" in text
    assert torch.equal(model.base_model.model.embed(tokens()), stock.base_model.model.embed(tokens()))
    torch.testing.assert_close(model(tokens()), stock(tokens()))


def alora(**kw: Any) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", alora_invocation_tokens=[5], **kw)


def velora(**kw: Any) -> LoraConfig:
    from peft.tuners.lora.config import VeloraConfig

    return LoraConfig(r=4, velora_config=VeloraConfig(num_groups=4), **kw)


def bd_lora(**kw: Any) -> LoraConfig:
    from peft.tuners.lora.config import BdLoraConfig

    return LoraConfig(
        r=4, use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2, match_strict=False), **kw
    )


def kasa(**kw: Any) -> LoraConfig:
    from peft.tuners.lora.config import KasaConfig

    return LoraConfig(r=4, kasa_config=KasaConfig(), **kw)


VARIANTS = {"ALora": alora, "Velora": velora, "BdLora": bd_lora, "Kasa": kasa}


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_variants_are_left_alone_with_their_reason_and_their_results(variant):
    torch.manual_seed(0)
    model = moved(get_peft_model(llama(), VARIANTS[variant](target_modules=["q_proj"]))).eval()
    stock = twin(model)
    report = accelerate(model)
    assert {layer.reason for layer in report.layers} == {f"the LoRA variant {variant} has no fast form here"}
    assert torch.equal(model(input_ids=tokens()).logits, stock(input_ids=tokens()).logits)


def test_an_unusual_variant_beside_a_plain_adapter_runs_as_peft_has_it():
    torch.manual_seed(0)
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    model.add_adapter("bd_lora", bd_lora(target_modules=["q_proj"]))
    moved(model).eval()
    stock = twin(model)
    assert not accelerate(model).left_alone
    for active in ("default", "bd_lora"):
        for each in (model, stock):
            each.set_adapter(active)
        logits, expected = model(input_ids=tokens()).logits, stock(input_ids=tokens()).logits
        torch.testing.assert_close(logits, expected)
        assert torch.equal(logits, expected) or active == "default"


@pytest.mark.parametrize("config, name", [(LoKrConfig, "LOKR"), (IA3Config, "IA3")])
def test_other_methods_are_left_alone_under_their_name(config, name):
    changes = {"feedforward_modules": []} if config is IA3Config else {}
    model = get_peft_model(llama(), config(target_modules=["q_proj"], **changes))
    report = accelerate(model)
    assert {layer.method for layer in report.layers} == {name}
    assert (
        all("has no fast form here" in layer.reason for layer in report.left_alone) and not report.accelerated
    )


def test_the_packages_own_method_is_left_alone_since_it_is_fast_already():
    report = accelerate(get_peft_model(llama(), HybridConfig(target_modules=["q_proj"])))
    assert {layer.reason for layer in report.layers} == {"it runs on this package's operators already"}


@pytest.mark.parametrize(
    "method", ["lora", "dora", "hra", "oft"]
)  # PEFT makes no BOFT layer on the meta device
def test_layers_on_the_meta_device_may_be_accelerated_before_or_after_they_are_loaded(method, tmp_path):
    source = adapted("llama", method)
    source.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=True)
    assert not accelerate(model).left_alone
    with torch.device("meta"):
        empty = get_peft_model(llama(), METHODS[method](target_modules=LLAMA_LINEAR))
    accelerate(empty)
    with torch.device("meta"):
        assert empty(input_ids=tokens().to("meta")).logits.shape == (3, 7, 64)
    empty.to_empty(device="cpu")
    empty.load_state_dict(source.state_dict())
    for wanted, held in zip(source.buffers(), empty.buffers(), strict=True):
        held.copy_(wanted)  # those that no state dict has
    assert not accelerate(empty).left_alone
    torch.testing.assert_close(empty(input_ids=tokens()).logits, source(input_ids=tokens()).logits)


# --- errors and the switch ---------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"model is a dict; it must be a torch\.nn\.Module"):
        accelerate({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model \(a LlamaForCausalLM\) has no PEFT layer"):
        accelerate(llama())


def test_switched_off_everything_is_left_alone(monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_ACCELERATE", "0")
    model = adapted("llama", "lora")
    report = accelerate(model)
    assert {layer.reason for layer in report.layers} == {
        "environment variable HYBRID_KERNELS_ACCELERATE is 0"
    }
    assert str(report) == (
        f"0 of 14 PEFT layers accelerated\n  left alone: {report.layers[0].name} and 13 more (LoRA): "
        "environment variable HYBRID_KERNELS_ACCELERATE is 0"
    )
    assert not is_accelerated(model)


def test_a_bad_value_of_the_switch_is_an_error(monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_ACCELERATE", "yes")
    model = adapted("llama", "lora")
    with pytest.raises(ValueError, match="HYBRID_KERNELS_ACCELERATE is 'yes'; it may be 0, 1 or not set"):
        accelerate(model)
    assert not is_accelerated(model)


# --- training ----------------------------------------------------------------------------------------------------


class Watching(TrainerCallback):
    """Remembers at each step whether the model was accelerated; raises at the step that it is told."""

    def __init__(self, raise_at: int = 0) -> None:
        self.raise_at = raise_at
        self.seen: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(is_accelerated(kwargs["model"]))
        if state.global_step == self.raise_at:
            raise FloatingPointError


def trainer(
    model: nn.Module, folder: Any, *callbacks: TrainerCallback, cls: type[Trainer] = Trainer
) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=3, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens(6)]
    return cls(model, arguments, train_dataset=rows, callbacks=list(callbacks))


def test_the_callback_accelerates_while_training_and_no_longer(tmp_path):
    model, stock = adapted("llama", "hra"), adapted("llama", "hra")
    callback, watching = AccelerateCallback(), Watching()
    trainer(model, tmp_path, callback, watching).train()
    assert watching.seen == [True] * 3
    assert not is_accelerated(model)
    assert len(callback.report.accelerated) == 14
    trainer(stock, tmp_path).train()
    for mine, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_was_accelerated_before_the_training_stays_so(tmp_path):
    model = adapted("llama", "lora")
    accelerate(model)
    trainer(model, tmp_path, AccelerateCallback()).train()
    assert is_accelerated(model)


def test_a_training_that_raises_leaves_the_model_accelerated_until_the_next_has_ended(tmp_path):
    model = adapted("llama", "lora")
    watching = Watching(raise_at=2)
    training = trainer(model, tmp_path, AccelerateCallback(), watching)
    with pytest.raises(FloatingPointError):
        training.train()
    assert is_accelerated(model)
    watching.raise_at = 0
    training.train()
    assert watching.seen == [True] * 5
    assert not is_accelerated(model)
    restore(model)


@pytest.mark.parametrize("switch", ["1", "0", ""])
def test_hybrid_trainer_accelerates_other_methods_where_the_switch_says_so(switch, tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_ACCELERATE", switch)
    model, watching = adapted("llama", "oft"), Watching()
    trainer(model, tmp_path, watching, cls=HybridTrainer).train()
    assert watching.seen == [switch == "1"] * 3
    assert not is_accelerated(model)


def test_hybrid_trainer_adds_no_callback_to_one_that_is_given_or_for_nothing(tmp_path, monkeypatch):
    def callbacks(training: Trainer) -> list[TrainerCallback]:
        return [c for c in training.callback_handler.callbacks if isinstance(c, AccelerateCallback)]

    monkeypatch.setenv("HYBRID_KERNELS_ACCELERATE", "1")
    given = AccelerateCallback(share_inputs=False)
    assert callbacks(trainer(adapted("llama", "lora"), tmp_path, given, cls=HybridTrainer)) == [given]
    for config in (HybridConfig(target_modules=["q_proj"]), LoKrConfig(target_modules=["q_proj"])):
        training = trainer(get_peft_model(llama(), config), tmp_path, cls=HybridTrainer)
        assert callbacks(training) == []
        training.train()


@pytest.mark.parametrize("method", ["lora", "hra", "oft", "boft_2"])
def test_accelerated_layers_whose_adapters_are_gone_are_reported(method):
    model = adapted("llama", method)
    accelerate(model)
    model.base_model.delete_adapter("default")
    report = accelerate(model)
    assert not report.accelerated and {layer.reason for layer in report.left_alone} == {"it has no adapter"}


def test_an_error_on_the_way_changes_nothing(monkeypatch):
    model = adapted("llama", "lora")
    last = [module for module in model.modules() if isinstance(module, LoraLayer)][-1]
    monkeypatch.setattr(last, "lora_A", None)
    with pytest.raises(TypeError):
        accelerate(model)
    assert not accelerated_layers(model)
