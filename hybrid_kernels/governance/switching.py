"""Code-switching: how much of a text is in another language than the rest of it.

A text is cut into segments of a few words. A segment counts as switched where the text's own language is next to
impossible and another one nearly certain; names alone seldom are that. The segments' scores come from the walk that
scored the text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.identify import Walk, model, posterior

# Weight of a segment: letters, where one of a script without spaces counts `_DENSE`.
_SEGMENT, _DENSE = 20, 3

# A segment is switched where its own language has at most the one and another language at least the other
# probability. On clean text (FLORES, NTREX) a share of ¼ is reached by at most 0.4 % of the rows of any language,
# mostly for foreign titles and names.
_OWN, _OTHER = 0.005, 0.95


def switching(walk: Walk, own: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """How much of each text is in a language other than its own, and in which.

    Args:
        walk: the texts.
        own: of each text the position of its language in `model().languages`; −1 where it has none.

    Returns:
        (share of the letters, in 0–1, 0 for a text too short to be cut; position of the language, −1 where the share
        is 0).
    """
    share, other = np.zeros(walk.texts), np.full(walk.texts, -1, np.intp)
    segment, text, weight = _segments(walk)
    if not len(text):
        return share, other
    probability = posterior(*walk.scores(segment, len(text)))
    own_of_segment = own[text]
    rows = np.arange(len(text))
    own_probability = np.where(own_of_segment >= 0, probability[rows, own_of_segment], 1.0)
    probability[rows, own_of_segment] = 0
    rival = probability.argmax(1)
    switched = (own_probability <= _OWN) & (probability[rows, rival] >= _OTHER)
    # All of it in another language: that is no switch.
    switched &= (np.bincount(text[~switched], minlength=walk.texts) > 0)[text]
    total = np.bincount(text, weight, walk.texts)
    languages = len(model().languages)
    pairs, inverse = np.unique(text[switched] * languages + rival[switched], return_inverse=True)
    pair_weight = np.bincount(inverse, weight[switched], len(pairs))
    # The heaviest language of each text comes last, and stays.
    order = np.argsort(pair_weight, kind="stable")
    of_text, language = np.divmod(pairs[order], languages)
    share[of_text] = pair_weight[order] / total[of_text]
    other[of_text] = language
    return share, other


def _segments(walk: Walk) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(segment of each byte, −1 in texts that are not cut; of each segment its text; its weight).

    Each text is cut into as many parts of equal weight as it has times `_SEGMENT`, at the next word, or where there
    are no spaces between words at the next character.
    """
    stream = walk.stream
    if not len(stream):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    leads = (stream & 0xC0) != 0x80
    space = leads & ((stream == 0x20) | ((stream >= 0x09) & (stream <= 0x0D)))
    dense = leads & _is_dense(stream)
    weight = np.where(dense, _DENSE, leads & _is_letter(stream))
    is_first = np.diff(walk.owner, prepend=-1) > 0
    first = np.flatnonzero(is_first)
    sizes = np.diff(np.append(first, len(stream)))
    before = np.cumsum(weight) - weight
    total = np.add.reduceat(weight, first)
    within = before - np.repeat(before[first], sizes)
    starts = is_first | dense | (leads & ~space & np.append(True, space[:-1]))
    start = np.maximum.accumulate(np.where(starts, np.arange(len(stream)), 0))
    parts = np.repeat(total // _SEGMENT, sizes)
    part = np.minimum(
        within[start] * parts // np.maximum(np.repeat(total, sizes), 1), np.maximum(parts - 1, 0)
    )
    begins = is_first | (np.diff(part, prepend=0) != 0)
    begins &= parts >= 2
    segment = np.where(parts >= 2, np.cumsum(begins) - 1, -1)
    cut = segment >= 0
    return (
        segment,
        walk.owner[begins],
        np.bincount(segment[cut], weights=weight[cut].astype(np.float64), minlength=int(begins.sum())).astype(
            np.float64
        ),
    )


def _is_letter(stream: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Roughly: ASCII letters and all beyond ASCII."""
    return (stream >= 0x80) | (((stream | 0x20) >= 0x61) & ((stream | 0x20) <= 0x7A))


def _is_dense(stream: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """By the first bytes of a character in UTF-8: kana, ideographs and Hangul aside from its syllables (E3–E9), Thai
    and Lao (E0 B8–BB), Myanmar (E1 80–82) and Khmer (E1 9E–9F). Words of none of them are set apart by spaces."""
    following = np.append(stream[1:], 0)
    return (
        ((stream >= 0xE3) & (stream <= 0xE9))
        | ((stream == 0xE0) & (following >= 0xB8) & (following <= 0xBB))
        | ((stream == 0xE1) & ((following <= 0x82) | (following == 0x9E) | (following == 0x9F)))
    )
