"""Training loops: accelerate's Accelerator, and TRL's SFTTrainer with AccelerateCallback."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader

from hybrid_kernels.adapters import AccelerateCallback
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer
from tests.adapters.acceleration.support import tokens
from tests.adapters.stack.support import (
    HYBRID,
    KINDS,
    Results,
    assert_as_plain,
    configuration,
    fast,
    no_stock_forward,
    plain_backend,
    plain_base,
)


def trained(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def accelerator_loop(model: nn.Module) -> Results:
    """Two steps of two micro-batches each: the loss of every one, and the parameters at the end."""
    # Accelerate's state is the process's own: a Trainer that ran before in bfloat16 leaves its precision behind.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=2, cpu=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(tokens(rows=8), batch_size=2))
    losses = []
    for ids in loader:
        with accelerator.accumulate(model):
            loss = model(input_ids=ids, labels=ids).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return [torch.stack(losses), trained(accelerator.unwrap_model(model))]


@pytest.mark.parametrize("kind", KINDS)
def test_accelerators_loop_with_accumulation(kind) -> None:
    model = fast(kind)
    with no_stock_forward(model):
        results = accelerator_loop(model)
    assert_as_plain(kind, results, accelerator_loop)


WORDS = "the cat sat on a mat and it was very happy there with all its friends".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *dict.fromkeys(WORDS)])
    }
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_supervised_fine_tuning_with_trl(kind, tokenizer, tmp_path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_dict({"text": [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]})
    seen = []

    class Recording(AccelerateCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            seen.append(sum(isinstance(m, AcceleratedLayer) for m in kwargs["model"].modules()))

    def train(callbacks: list) -> tuple[list[float], nn.Module]:
        torch.manual_seed(5)
        arguments = SFTConfig(
            output_dir=str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            max_length=16,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=plain_base(),
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=configuration(kind),
            callbacks=callbacks,
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.model

    with plain_backend(kind):
        expected, _ = train([])
    losses, model = train([] if kind in HYBRID else [Recording()])
    assert len(losses) == 4
    assert losses == pytest.approx(expected, rel=1e-4)
    if kind not in HYBRID:
        assert seen == [7] * 4  # while it trains
        assert not any(isinstance(module, AcceleratedLayer) for module in model.modules())
