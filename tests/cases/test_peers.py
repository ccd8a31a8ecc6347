import pytest
import torch
from torch import nn

from hybrid_kernels.cases import peers
from hybrid_kernels.cases.peft_butterflies import block_diagonal, blocks_of

pytest.importorskip("peft")
CPU = torch.device("cpu")


def lora():
    return peers.under_peft(nn.Sequential(nn.Linear(8, 8)), "LoRA r=16", ["0"])


def test_a_seeded_block_draws_the_same_and_leaves_other_random_numbers_alone():
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with peers.seeded(3, CPU):
            drawn.append(torch.randn(4))
    assert torch.equal(*drawn) and torch.equal(torch.get_rng_state(), before)


def test_accelerated_modules_share_every_parameter_and_leave_peft_as_it_was():
    stock = lora()
    fast = peers.on_our_operators(stock)
    assert all(p is q for p, q in zip(stock.parameters(), fast.parameters(), strict=True))
    assert any(hasattr(module, "_acceleration") for module in fast.modules())
    assert not any(hasattr(module, "_acceleration") for module in stock.modules())


def test_a_layer_that_is_left_alone_is_no_accelerated_side(monkeypatch):
    monkeypatch.setenv("HYBRID_KERNELS_ACCELERATE", "0")
    with pytest.raises(RuntimeError, match="was left alone: environment variable"):
        peers.on_our_operators(lora())


def test_adapters_are_off_their_start():
    for name, parameter in lora().named_parameters():
        assert "lora_B" not in name or parameter.abs().min() > 0


def test_blocks_other_than_the_name_says_are_refused():
    with pytest.raises(RuntimeError, match=r"in_features of base_model\.model\.0 is not divisible by 32"):
        peers.under_peft(nn.Sequential(nn.Linear(40, 8)), "OFT b=32", ["0"])


def test_one_butterfly_factor_in_place_of_two_is_refused(monkeypatch):
    from peft.tuners.boft import layer

    monkeypatch.setattr(peers, "allow_butterflies_in_peft", lambda: None)
    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: None)
    with pytest.raises(RuntimeError, match="would make one butterfly factor only"):
        peers.under_peft(nn.Sequential(nn.Linear(32, 8)), "BOFT b=8 m=2", ["0"])


def test_a_record_says_what_stands_in_for_boft():
    (note,) = peers.notes(("LoRA r=16", "BOFT b=8 m=2"), CPU)
    assert "plain PyTorch in the place of the CUDA extension" in note
    assert peers.notes(("LoRA r=16",), CPU) == peers.notes(("BOFT b=8 m=2",), torch.device("cuda")) == ()


def test_unsloth_and_liger_say_that_they_need_a_gpu():
    with pytest.raises(RuntimeError, match="Unsloth's kernels need a GPU; the device is 'cpu'"):
        peers.unsloth_lora(lora(), CPU)
    with pytest.raises(RuntimeError, match="Liger's kernels need a GPU; the device is 'cpu'"):
        peers.with_liger(lora())


def test_the_stand_in_makes_block_diagonal_matrices():
    blocks = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    matrices = torch.stack([torch.block_diag(*each) for each in blocks])
    gradient = torch.randn_like(matrices)
    torch.testing.assert_close(block_diagonal(blocks.detach())[0], matrices.detach(), rtol=0, atol=0)
    (expected,) = torch.autograd.grad(matrices, blocks, gradient)
    torch.testing.assert_close(blocks_of(gradient, blocks.detach())[0], expected, rtol=0, atol=0)
    torch.testing.assert_close(blocks_of(gradient.mT, blocks.detach())[0], expected.mT, rtol=0, atol=0)
