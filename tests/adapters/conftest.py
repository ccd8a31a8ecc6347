"""A small BERT with three classes, made anew with the same weights at each call."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch


@pytest.fixture(scope="session")
def _bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=100,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def make_base(_bert) -> Callable[[], torch.nn.Module]:
    return lambda: copy.deepcopy(_bert)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(0, 100, (6, 9), generator=generator),
        "labels": torch.randint(0, 3, (6,), generator=generator),
    }
