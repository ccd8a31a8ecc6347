"""Which language a text is in: the model of `py3langid`, a batch at a time, and probabilities that mean what they say.

The model is naive Bayes over byte n-grams that a finite automaton finds. Its own interface walks the automaton and
looks scores up text by text; here one walk reads all texts side by side and one sparse product scores them: the same
numbers, for a fifth of the time, and the scores of the segments of a text from the same walk.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

#: Characters of a text that are read; of a longer one its beginning, its middle and its end.
MAX_CHARACTERS = 6000

# Temperature of the posterior, a · bytes ** b. Naive Bayes takes the n-grams of a text for independent and so is far
# too sure; `py3langid` divides by sqrt(bytes), which is not sure enough. Fitted by
# benchmarks/governance_calibration.py to the log-likelihood of the true language among all known ones, on sentences
# and fragments of FLORES, NTREX, XNLI and Tatoeba in 15 languages; what it is worth on the other half of them is in
# benchmarks/results/governance_calibration.cpu.json.
TEMPERATURE_SCALE, TEMPERATURE_EXPONENT = 0.710, 0.304

# Spoken varieties whose written form the model cannot tell from the standard language, older forms in the same
# script, and a language that the model has twice.
_VARIETIES = {"ary": "ar", "arz": "ar", "grc": "el", "hbo": "he", "uzs": "uz", "wuu": "zh", "yue": "zh"}
#: The model's class for what is no language.
NO_LANGUAGE = "zxx"

# Bytes that are walked and scored at once: bounds memory, and decides nothing.
_BLOCK_BYTES = 1 << 20
# Bytes that each of the walks side by side reads.
_LANE = 96

# "c ' est" and "c' est" as tokenisers leave them; French so spaced passes for Walloon.
_SPACED_APOSTROPHE = re.compile(r"(?<=\w) ?(['’]) (?=\w)")

# Letters in another form, alone or with what stands between them: ligatures, Arabic presentation forms, full and half
# width, mathematical letters. The model has seen the plain ones. All of a text in this form (NFKC) would take the
# full-width punctuation from Chinese and tear Thai vowels apart.
_FORMS = "\ufb00-\ufdfb\ufe70-\ufefc\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc\U0001d400-\U0001d7ff"
_COMPATIBILITY = re.compile(f"[{_FORMS}]+(?:[\u3000\uff01-\uff20]+[{_FORMS}]+)*")


@dataclass(frozen=True)
class Model:
    """The automaton and the tables of naive Bayes.

    Attributes:
        next_state: by row + byte; `row` gives each state's, a multiple of 256.
        found: the n-gram that a state has just seen, −1 where none.
        memory: on how many bytes back a state depends at most.
        log_likelihood, log_prior: by n-gram and class.
        languages: the languages, sorted; varieties count as their standard language.
        language: of each class the position of its language.
    """

    next_state: NDArray[Any]
    row: NDArray[np.intp]
    found: NDArray[np.int32]
    memory: int
    log_likelihood: NDArray[np.float16]
    log_prior: NDArray[np.float32]
    languages: tuple[str, ...]
    language: NDArray[np.intp]

    def position(self, language: str) -> int:
        return self.languages.index(language)


@lru_cache(maxsize=1)
def model() -> Model:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    next_state = np.frombuffer(identifier.tk_nextmove, np.dtype(f"u{identifier.tk_nextmove.itemsize}"))
    row = np.asarray(identifier.tk_row, np.intp) * 256
    classes = [_VARIETIES.get(label, label) for label in identifier.nb_classes]
    languages = tuple(sorted(set(classes)))
    return Model(
        next_state=next_state,
        row=row,
        found=np.asarray(identifier.tk_output, np.int32),
        memory=_memory(next_state, row),
        log_likelihood=identifier.nb_ptc,
        log_prior=identifier.nb_pc,
        languages=languages,
        language=np.array([languages.index(label) for label in classes]),
    )


def _memory(next_state: NDArray[Any], row: NDArray[np.intp]) -> int:
    """A state stands for the longest n-gram that the text may be in the middle of: the most steps from the start to
    one."""
    moves = next_state.reshape(-1, 256)
    unseen = np.ones(len(row), bool)
    unseen[0] = False
    frontier, steps = np.zeros(1, np.intp), 0
    while len(frontier):
        reached = np.unique(moves[row[frontier] >> 8])
        frontier = reached[unseen[reached]]
        unseen[frontier] = False
        steps += bool(len(frontier))
    return steps


@lru_cache(maxsize=1)
def known_languages() -> tuple[str, ...]:
    """Sorted codes (ISO 639-1, else 639-3) of the languages that can be told."""
    return tuple(language for language in model().languages if language != NO_LANGUAGE)


def encoded(text: str) -> bytes:
    """What the model reads of a text: as `py3langid` has it, but for spaced apostrophes, letters in other
    forms and very long texts."""
    if len(text) > MAX_CHARACTERS:
        part = MAX_CHARACTERS // 3
        middle = (len(text) - part) // 2
        text = "\n".join((text[:part], text[middle : middle + part], text[-part:]))
    if "' " in text or "’ " in text:
        text = _SPACED_APOSTROPHE.sub(r"\1", text)
    if not text.isascii():
        text = _COMPATIBILITY.sub(lambda found: unicodedata.normalize("NFKC", found.group()), text)
    if text.isupper():
        text = text.lower()
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Walk:
    """Some texts in one stream of bytes: which text each byte is of, and the n-gram that ends at it (−1: none)."""

    stream: NDArray[np.uint8]
    owner: NDArray[np.int64]
    found: NDArray[np.int32]
    texts: int

    def scores(self, owner: NDArray[np.int64], owners: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(scores by class, bytes) of what each byte is said to belong to, texts or segments of them; −1: nothing."""
        return _scores(owner, self.found, owners), np.bincount(owner[owner >= 0], minlength=owners)


def walks(texts: Sequence[str]) -> Iterator[tuple[int, Walk]]:
    """(position of its first text, walk) of all texts, in blocks that bound memory."""
    data: list[bytes] = []
    size = first = 0
    for position, text in enumerate(texts):
        data.append(encoded(text))
        size += len(data[-1])
        if size >= _BLOCK_BYTES or position + 1 == len(texts):
            yield first, _walk(data)
            data, size, first = [], 0, position + 1


def identify(texts: Sequence[str]) -> NDArray[np.float32]:
    """The posterior of each text over `model().languages`."""
    parts = [posterior(*walk.scores(walk.owner, walk.texts)) for _, walk in walks(texts)]
    return np.concatenate(parts) if parts else np.empty((0, len(model().languages)), np.float32)


def _walk(data: Sequence[bytes]) -> Walk:
    """The stream is cut into lanes that are read side by side. A state remembers a few bytes, so that a lane which
    begins these few bytes early arrives in the right one."""
    automaton = model()
    sizes = np.fromiter(map(len, data), np.int64, len(data))
    stream = np.frombuffer(b"".join(data), np.uint8)
    owner = np.repeat(np.arange(len(data)), sizes)
    lanes = -(-len(stream) // _LANE)
    padded = np.zeros(automaton.memory + lanes * _LANE, np.uint8)
    padded[automaton.memory :][: len(stream)] = stream
    is_first = np.zeros(len(padded), bool)
    is_first[automaton.memory :][: len(stream)] = np.diff(owner, prepend=-1) > 0
    found = np.empty((lanes, _LANE), np.int32)
    begin = np.arange(lanes) * _LANE
    state = np.zeros(lanes, np.intp)
    for step in range(automaton.memory + _LANE):
        state[is_first[begin + step]] = 0
        state = automaton.next_state[automaton.row[state] + padded[begin + step]]
        if step >= automaton.memory:
            found[:, step - automaton.memory] = automaton.found[state]
    return Walk(stream, owner, found.ravel()[: len(stream)], len(data))


def _scores(owner: NDArray[np.int64], found: NDArray[np.int32], owners: int) -> NDArray[np.float32]:
    """log(1 + counts) · log-likelihoods + prior, by owner and class. A row's sum runs over its n-grams in their order,
    whatever is scored beside it, so that a text has the same score everywhere; 0 where no n-gram was found."""
    table = model().log_likelihood
    seen = (found >= 0) & (owner >= 0)
    # Half as wide, keys are sorted twice as fast.
    kind = np.uint32 if owners * len(table) < 1 << 32 else np.uint64
    keys, counts = np.unique(
        owner[seen].astype(kind) * kind(len(table)) + found[seen].astype(kind), return_counts=True
    )
    row, gram = np.divmod(keys, kind(len(table)))
    used = np.zeros(len(table), bool)
    used[gram] = True
    column = (np.cumsum(used) - 1)[gram]
    bounds = np.searchsorted(row, np.arange(owners + 1))
    weights = np.log1p(counts.astype(np.float32))
    product = scipy.sparse.csr_matrix((weights, column, bounds), shape=(owners, int(used.sum())))
    scores = product @ table[used].astype(np.float32)
    scores[np.diff(bounds) > 0] += model().log_prior
    return scores


def posterior(scores: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """softmax(scores / temperature) over the model's classes, then summed by language, for texts of `sizes` bytes."""
    temperature = TEMPERATURE_SCALE * np.maximum(sizes, 1) ** TEMPERATURE_EXPONENT
    scaled = scores - scores.max(1, keepdims=True)
    scaled /= temperature[:, None].astype(np.float32)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(1, keepdims=True)
    first, others = _classes()
    probability = scaled[:, first]
    for position, language in others:
        probability[:, language] += scaled[:, position]
    return probability


@lru_cache(maxsize=1)
def _classes() -> tuple[NDArray[np.intp], list[tuple[int, int]]]:
    """(the first class of each language; (class, language) of the others)."""
    language = model().language
    _, first = np.unique(language, return_index=True)
    return first, [(i, int(language[i])) for i in range(len(language)) if i not in first]
