"""Generation with a cache of keys and values."""

import pytest
import torch

from tests.adapters.acceleration.support import tokens
from tests.adapters.stack.support import DEVICES, KINDS, fast, plain, plain_backend


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_with_a_cache_and_padding(kind, device) -> None:
    ids = tokens(rows=3, length=6).to(device)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padded on the left
    mask[1, :1] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def generate(model, use_cache: bool) -> torch.Tensor:
        model = model.to(device).eval()
        return model.generate(input_ids=ids, attention_mask=mask, use_cache=use_cache, **options)

    with plain_backend(kind):
        expected = generate(plain(kind), use_cache=True)
    assert expected.shape == (3, 18)
    model = fast(kind)
    assert torch.equal(generate(model, use_cache=True), expected)
    assert torch.equal(generate(model, use_cache=False), expected)
    # After a training step's change of the adapter nothing of the earlier factors is left.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(-3.0)
    changed = generate(model, use_cache=True)
    other = plain(kind)
    other.load_state_dict(model.state_dict())
    with plain_backend(kind):
        assert torch.equal(changed, generate(other, use_cache=True))
