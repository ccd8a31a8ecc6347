"""What the numbers of a run allow one to say, in sentences: who is best, and what cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hybrid_kernels.evaluation.results import LanguageScores, Method, Results

#: two values are told apart when they differ by more than this many standard errors of the difference (95 %)
CRITICAL = 1.96


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error: sampling of the evaluation rows and, where known, spread over seeds."""

    value: float
    error: float

    def distinguishable(self, other: Estimate) -> bool:
        return abs(self.value - other.value) > CRITICAL * math.hypot(self.error, other.error)


def sampling_error(scores: LanguageScores) -> float:
    """Binomial standard error √(p(1 − p)/n) of one language's accuracy.

    p is kept half a row away from 0 and 1, where the formula would claim certainty.
    """
    half_row = 0.5 / scores.n
    p = min(max(scores.accuracy, half_row), 1 - half_row)
    return math.sqrt(p * (1 - p) / scores.n)


def accuracy(method: Method) -> Estimate:
    """Macro accuracy; the languages' sampling errors are taken as independent."""
    errors = [sampling_error(scores) for scores in method.evaluation.per_language.values()]
    return Estimate(
        method.evaluation.macro.accuracy,
        math.hypot(math.hypot(*errors) / len(errors), _spread(method, "accuracy")),
    )


def calibration(method: Method) -> Estimate:
    """Macro expected calibration error.

    It averages |accuracy − confidence|, and confidence is known exactly: the sampling error is accuracy's.
    """
    errors = [sampling_error(scores) for scores in method.evaluation.per_language.values()]
    return Estimate(
        method.evaluation.macro.ece, math.hypot(math.hypot(*errors) / len(errors), _spread(method, "ece"))
    )


def parity_gap(method: Method) -> Estimate:
    """Accuracy of the reference language − accuracy of the worst one."""
    parity, per_language = method.evaluation.parity, method.evaluation.per_language
    errors = [sampling_error(per_language[code]) for code in {parity.reference, parity.worst_language}]
    return Estimate(parity.gap, math.hypot(*errors, _spread(method, "gap")))


@dataclass(frozen=True)
class Criterion:
    """One way of ranking the methods."""

    name: str
    superlative: str
    worse: str
    estimate: Callable[[Method], Estimate]
    higher_is_better: bool
    unit: str

    def rank(self, methods: list[Method]) -> tuple[Method, list[Method], list[Method]]:
        """The best method, those not distinguishable from it, and those distinguishably worse; best first."""
        ordered = sorted(methods, key=lambda m: self.estimate(m).value, reverse=self.higher_is_better)
        best = self.estimate(ordered[0])
        apart = [self.estimate(m).distinguishable(best) for m in ordered]
        tied = [m for m, far in zip(ordered, apart, strict=True) if not far][1:]
        return ordered[0], tied, [m for m, far in zip(ordered, apart, strict=True) if far]


CRITERIA = (
    Criterion("Accuracy", "the highest macro accuracy", "lower", accuracy, True, "%"),
    Criterion("Calibration", "the lowest expected calibration error", "higher", calibration, False, "%"),
    Criterion("Parity", "the smallest parity gap", "wider", parity_gap, False, "points"),
)


def findings(results: Results) -> list[tuple[str, str]]:
    """(topic, sentences): which method is best at what, whether that is certain, and what it cost."""
    methods = results.methods
    ranked, chance, pooled = [_comparison(c, methods) for c in CRITERIA], _chance(results), _pooled(methods)
    texts = {
        "Accuracy": f"{ranked[0]} {chance}",
        "Calibration": f"{ranked[1]} {pooled}",
        "Parity": ranked[2],
        "Cost": _cost(results),
        "This project": _standing(methods),
        "Certainty": _certainty(results),
    }
    return [(topic, text.strip()) for topic, text in texts.items() if text]


def _comparison(criterion: Criterion, methods: list[Method]) -> str:
    best, tied, worse = criterion.rank(methods)
    top = criterion.estimate(best)
    value = f"{100 * top.value:.1f} ± {100 * top.error:.1f} {criterion.unit}"
    if criterion.estimate is parity_gap:
        parity = best.evaluation.parity
        if len(best.evaluation.per_language) == 1:
            return "Only one language was scored, so there is nothing to compare."
        value += f" ({parity.reference} against {parity.worst_language}, its worst)"
    if len(methods) == 1:
        return f"{best.label}: {value}."

    def values(others: list[Method]) -> str:
        return listing(f"{m.label} ({100 * criterion.estimate(m).value:.1f})" for m in others)

    text = f"{best.label} has {criterion.superlative}: {value}."
    if tied:
        text += f" Not distinguishable from it, the difference being inside the uncertainty: {values(tied)}."
    if worse:
        text += f" Distinguishably {criterion.worse}: {values(worse)}."
    return text


def _chance(results: Results) -> str:
    chance = Estimate(1 / results.data.classes, 0.0)
    text = f"Guessing among {results.data.classes} classes scores {100 * chance.value:.1f} %."
    scores = [(m.label, accuracy(m)) for m in results.methods]
    apart = [(label, score) for label, score in scores if score.distinguishable(chance)]
    if at_chance := [label for label, score in scores if not score.distinguishable(chance)]:
        text += f" Not distinguishable from guessing: {listing(at_chance)}."
    if below := [label for label, score in apart if score.value < chance.value]:
        text += f" Worse than guessing: {listing(below)}."
    return text


def _pooled(methods: list[Method]) -> str:
    if all(len(m.evaluation.per_language) == 1 for m in methods):
        return ""
    errors = [m.evaluation.pooled_ece for m in methods]
    known = sorted(error for error in errors if error is not None)
    if not known:
        return ""
    low, high = f"{100 * known[0]:.1f}", f"{100 * known[-1]:.1f}"
    return (
        "This is a mean over languages, which few rows per language inflate by chance; over all rows "
        f"together the error is {low if low == high else f'{low} to {high}'} %."
    )


def _cost(results: Results) -> str:
    best = CRITERIA[0].rank(results.methods)[0]
    share = 100 * best.trainable_parameters / results.model.parameters
    parts = [f"trains {best.trainable_parameters:,} parameters ({share:.2g} % of the model's)"]
    if best.step_time_ratio is not None:
        parts.append(f"takes {best.step_time_ratio:.2f}× the frozen model's time per training step")
    if best.peak_memory_bytes is not None:
        parts.append(f"needs {binary_size(best.peak_memory_bytes)} of memory at its peak")
    if best.adapter_bytes is not None:
        parts.append(f"saves an adapter of {binary_size(best.adapter_bytes)}")
    text = f"{best.label}{', first in accuracy,' if len(results.methods) > 1 else ''} {listing(parts)}."

    ratios = [(m.step_time_ratio, m) for m in results.methods if m.step_time_ratio is not None]
    if len(ratios) > 1:
        ratios.sort(key=lambda pair: pair[0])
        (low, fastest), (high, slowest) = ratios[0], ratios[-1]
        text += f" Time per step runs from {low:.2f}× ({fastest.label}) to {high:.2f}× ({slowest.label})."
        if same := [m.label for _, m in ratios[1:] if _quartiles_overlap(fastest, m)]:
            text += f" Not distinguishable from the fastest (the middle halves overlap): {listing(same)}."
    return text


def _standing(methods: list[Method]) -> str:
    """Where this project's own methods stand, plainly, whether they win or not."""
    if len(methods) == 1:
        return ""
    sentences = []
    for own in (m for m in methods if m.backend == "hybrid-kernels"):
        places: dict[str, list[str]] = {
            "best": [],
            "not distinguishable from the best": [],
            "not the best": [],
        }
        for criterion in CRITERIA:
            best, tied, _ = criterion.rank(methods)
            place = "best" if best is own else "not the best"
            # A first place which others share is no win.
            if tied and own in (best, *tied):
                place = "not distinguishable from the best"
            places[place].append(criterion.name.lower())
        standing = "; ".join(f"{place} in {listing(names)}" for place, names in places.items() if names)
        sentences.append(f"{own.label} is {standing}.")
    return " ".join(sentences)


def _certainty(results: Results) -> str:
    seeds = {len(m.seeds) for m in results.methods}
    if seeds == {1}:
        repeats = "Each method was trained once: what another seed would change is unknown and comes on top."
    else:
        repeats = (
            f"Methods were trained with {listing(str(n) for n in sorted(seeds))} seeds; "
            "the standard deviation over seeds is counted in, where there is more than one."
        )
    return (
        "± is one standard error from the number of evaluation rows. "
        f"{repeats} Two values are called distinguishable when they differ by more than {CRITICAL} standard "
        "errors of the difference. Rows of different languages are taken as independent, which is optimistic "
        "where they are translations of one another; methods are taken as independent too, which is "
        "cautious, because all answer the same rows."
    )


def _spread(method: Method, metric: str) -> float:
    # The deviation over seeds, not divided by √seeds: a handful of seeds estimates it poorly.
    return (method.spread or {}).get(metric) or 0.0


def _quartiles_overlap(a: Method, b: Method) -> bool:
    if a.step_time_spread is None or b.step_time_spread is None:
        return False
    return a.step_time_spread[0] <= b.step_time_spread[1] and b.step_time_spread[0] <= a.step_time_spread[1]


def listing(items: Iterable[str]) -> str:
    """a; a and b; a, b and c"""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def binary_size(size: float) -> str:
    """Bytes as B, KiB, MiB or GiB with three figures."""
    units = ["B", "KiB", "MiB", "GiB"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        units.pop(0)
    decimals = 0 if units[0] == "B" or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{decimals}f} {units[0]}"
