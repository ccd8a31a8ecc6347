"""Loss curves of fine-tuning in float32: accelerated, each method follows stock PEFT's to 1e-4 at every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybrid_kernels.adapters.acceleration import accelerate
from tests.adapters.acceleration.support import MODELS, adapted, tokens, twin

STEPS = 50
METHOD_NAMES = ["lora", "dora", "hra", "hra_gram_schmidt", "oft", "oft_exact", "boft", "boft_2"]


def curve(model: nn.Module) -> list[float]:
    """The loss at each of 50 AdamW steps on two batches in turn.

    At five times this rate PEFT in float32 leaves PEFT in float64 by more than 1e-4: rounding would be compared.
    """
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(STEPS):
        ids = tokens(seed=step % 2)
        classifies = model.config.model_type == "bert"
        loss = model(input_ids=ids, labels=ids[:, 0] % 3 if classifies else ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_loss_curve_is_stock_pefts(model_name, method):
    stock = adapted(model_name, method)
    for module in stock.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # BERT's
    fast = twin(stock)
    assert not accelerate(fast).left_alone
    expected = torch.tensor(curve(stock))
    torch.testing.assert_close(torch.tensor(curve(fast)), expected, rtol=1e-4, atol=0.0)
    assert (expected[-2:] < expected[:2]).all()
