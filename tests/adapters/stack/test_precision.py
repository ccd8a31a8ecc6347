"""Autocast, loss scaling and deterministic mode."""

import pytest
import torch
from torch import nn

from tests.adapters.acceleration.support import tokens
from tests.adapters.stack.support import (
    DEVICES,
    KINDS,
    Results,
    assert_as_plain,
    fast,
    gradients,
    step,
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_in_bfloat16(kind, device) -> None:
    def run(model: nn.Module) -> Results:
        dtype = torch.bfloat16
        with torch.autocast(device, dtype, enabled=next(model.parameters()).dtype == torch.float32):
            return step(model)

    assert_as_plain(kind, run(fast(kind).to(device)), run, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_in_float16_with_a_scaled_loss(kind, device) -> None:
    def run(model: nn.Module) -> Results:
        narrow = next(model.parameters()).dtype == torch.float32
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=narrow)
        ids = tokens().to(device)
        with torch.autocast(device, torch.float16, enabled=narrow):
            output = model(input_ids=ids, labels=ids)
        scaler.scale(output.loss).backward()
        scaler.unscale_(optimizer)
        found = gradients(model)
        assert torch.isfinite(found).all()
        scaler.step(optimizer)
        scaler.update()
        after = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
        return [output.logits.detach(), found, after]

    assert_as_plain(kind, run(fast(kind).to(device)), run, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_skips_the_step(kind) -> None:
    model = fast(kind)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    ids = tokens()
    with torch.autocast("cpu", torch.float16):
        loss = model(input_ids=ids, labels=ids).loss
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    assert scaler.get_scale() < 2.0**40


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_deterministic_mode_gives_the_same_bits_twice(kind, device, deterministic, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    model = fast(kind).to(device)
    first, second = step(model), step(model)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_as_plain(kind, first, device=device)
