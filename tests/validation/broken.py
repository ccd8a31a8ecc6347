"""Kernels broken in every way that we could think of: {name: (what breaks the product, what is reported)}."""

from __future__ import annotations

import torch

BREAKS = {}


def breaks(*expected: str):
    """Registers what breaks the product on the backend "cpp", and what the report of it must say."""

    def register(function):
        BREAKS[function.__name__] = (function, expected)
        return function

    return register


@breaks("product, cpp, bfloat16", "product, cpp, float32", "contiguous, gradient of w: error")
def wrong_scale_in_one_gradient(product) -> None:
    right = product.backward
    product.backward = lambda x, w, dy: (right(x, w, dy)[0], right(x, w, dy)[1] * 1.2)


@breaks("product, cpp, bfloat16, m5-k7-n3, contiguous, y: error")
def wrong_in_bfloat16_alone(product) -> None:
    right = product.forward
    product.forward = lambda x, w: right(x, w) * (1.05 if x.dtype == torch.bfloat16 else 1)


@breaks("product, cpp, float32, m5-k7-n3, rows with a pitch, y: error")
def wrong_for_strided_input(product) -> None:
    def forward(x, w):
        return x.as_strided(x.shape, (x.shape[1], 1)).nan_to_num() @ w.mT

    product.forward = forward


@breaks("product, cpp, float32, m0-k7-n3, no rows, gradient of w: there are NaN")
def nan_without_rows(product) -> None:
    right = product.backward

    def backward(x, w, dy):
        dx, dw = right(x, w, dy)
        return dx, dw if len(x) else dw * float("nan")

    product.backward = backward


@breaks("product, cpp, float32, m5-k7-n3, contiguous: RuntimeError: no such kernel")
def raises(product) -> None:
    def forward(x, w):
        raise RuntimeError("no such kernel\nand more")

    product.forward = forward


@breaks("product, cpp, float64, m5-k7-n3, contiguous, y: error")
def single_precision_for_double(product) -> None:
    right = product.forward
    product.forward = lambda x, w: right(x.float(), w.float()).to(x.dtype)


@breaks("product, cpp, float32, m5-k7-n3, contiguous, y: it has shape (3, 5) and dtype float32; it must have")
def wrong_shape(product) -> None:
    product.forward = lambda x, w: w @ x.mT
    product.backward = lambda x, w, dy: (dy.mT @ w, dy @ x)


@breaks("product, cpp, float32, m5-k7-n3, contiguous, x: it is changed by the call")
def changes_an_argument(product) -> None:
    def forward(x, w):
        y = x @ w.mT
        x.mul_(2)
        return y

    product.forward = forward
    product.backward = lambda x, w, dy: (dy @ w, dy.mT @ (x / 2))


@breaks("product, cpp, float32, m5-k7-n3, contiguous, dy: it is changed by the call")
def changes_the_gradient(product) -> None:
    def backward(x, w, dy):
        gradients = dy @ w, dy.mT @ x
        dy.zero_()
        return gradients

    product.backward = backward


@breaks("product, cpp, float32, m5-k7-n3, contiguous, y: there are NaN")
def leaves_a_tail_as_it_was(product) -> None:
    def forward(x, w):
        for _ in range(8):
            x @ w.mT  # frees the right numbers
        y = x.new_empty(x.shape[0], w.shape[0])
        if len(x):
            torch.mm(x[:-1], w.mT, out=y[:-1])
        return y

    product.forward = forward


@breaks("product, cpp, float32, m5-k7-n3, contiguous, y: error")
def wrong_in_the_first_call_alone(product) -> None:
    right, seen = product.forward, set()

    def forward(x, w):
        wrong = x.dtype not in seen
        seen.add(x.dtype)
        return right(x, w) * (1.5 if wrong else 1)

    product.forward = forward
