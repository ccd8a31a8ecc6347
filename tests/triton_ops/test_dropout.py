import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import dropout

SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822]


def test_the_generator_is_philox():
    """Known answers of Random123 for Philox4x32-7."""
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    answers = {
        (0,) * 6: "5f6fb709 0d893f64 4f121f81 4f730a48",
        (0xFFFFFFFF,) * 6: "5207ddc2 45165e59 4d8ee751 8c52f662",
        (*pi[0], *pi[1]): "4dfccaba 190a87f0 c47362ba b6b5242a",
    }
    for numbers, answer in answers.items():
        counter, key = (list(map(torch.tensor, part)) for part in (numbers[:4], numbers[4:]))
        words = reference._philox(counter, key, 7)
        assert " ".join(f"{int(word):08x}" for word in words) == answer


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_is_the_reference(dtype, seed):
    generator = torch.Generator().manual_seed(0)
    number = torch.tensor(seed, device=DEVICE)
    for shape in (37, 45), (1, 7), (16, 64), (3, 1000):
        x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        for threshold in 1, 6554, 65535:
            y = dropout.dropout(x, threshold, number)
            expected = reference.seeded_dropout(x.double(), threshold / 2**16, number)
            assert torch.equal(y == 0, expected == 0)
            assert_close_by_scale(y, expected, expected.to(dtype), 2)


def test_any_strides_and_no_rows():
    x = torch.randn(45, 37).to(DEVICE)
    seed = torch.tensor(3, device=DEVICE)
    for strided in x.mT, x[::2, 1::3], x[:1].expand(20, 37):
        assert torch.equal(
            dropout.dropout(strided, 20000, seed), dropout.dropout(strided.contiguous(), 20000, seed)
        )
    assert dropout.dropout(x[:0], 20000, seed).shape == (0, 37)


def test_rows_beyond_32_bits_have_bits_of_their_own():
    row = torch.tensor([5, 5 + 2**32])
    words = [
        reference._philox(
            [r % 2**32, r // 2**32, torch.tensor(0), torch.tensor(0)], list(torch.tensor([9, 0])), 7
        )[0]
        for r in row
    ]
    assert words[0] != words[1]


def test_drops_the_probability_asked_for():
    x = torch.ones(512, 512).to(DEVICE)
    y = reference.seeded_dropout(x, 0.3, torch.tensor(11, device=DEVICE))
    kept = (y > 0).double()
    # Six standard deviations of a mean of independent draws, over all and along each side.
    deviation = (0.3 * 0.7 / 512) ** 0.5
    assert abs(kept.mean() - 0.7) < 6 * deviation / 512**0.5
    for side in 0, 1:
        assert (kept.mean(side) - 0.7).abs().max() < 6 * deviation
    assert abs(y.mean() - 1) < 6 * deviation / 512**0.5 / 0.7
