"""Predictions that metrics are tried on, and what torchmetrics makes of them."""

import numpy as np
import torch
from torchmetrics.classification import MulticlassCalibrationError


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def softmax_case(n, classes, sharpness, seed=0):
    generator = np.random.default_rng(seed)
    probabilities = softmax(sharpness * generator.normal(size=(n, classes)))
    return probabilities, generator.integers(0, classes, n)


CASES = {
    "moderate": softmax_case(500, 3, 1.0),
    "overconfident": softmax_case(500, 3, 8.0, seed=1),
    "two classes": softmax_case(200, 2, 1.0, seed=2),
    "many classes": softmax_case(400, 11, 2.0, seed=3),
    "single row": (np.array([[0.2, 0.7, 0.1]]), np.array([2])),
    "all certain": (np.eye(3)[[0, 1, 2, 0, 1]], np.array([0, 1, 2, 1, 1])),
    "class never occurs": (
        np.array([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.8, 0.2, 0.0]]),
        np.array([0, 1, 1]),
    ),
    "class predicted only": (np.array([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]), np.array([0, 0])),
}


def torchmetrics_ece(probabilities, labels, bins):
    # torchmetrics gives confidences of exactly 1 a bin of their own; one float32 step less is in the last.
    below_one = np.float32(1) - np.finfo(np.float32).epsneg
    metric = MulticlassCalibrationError(num_classes=probabilities.shape[1], n_bins=bins, norm="l1")
    return metric(torch.tensor(probabilities).clamp(max=below_one), torch.tensor(labels)).item()
