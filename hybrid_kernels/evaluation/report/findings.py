"""What the numbers allow one to say, in sentences: who won, by how much, whether it is real, what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hybrid_kernels.evaluation.report.rendering import MARKS, p_value
from hybrid_kernels.evaluation.resampling import DIRECTIONS, Directions
from hybrid_kernels.evaluation.significance import Comparison, Interval, Mark
from hybrid_kernels.evaluation.tables import Column, translation
from hybrid_kernels.evaluation.tables.cost import IMPLEMENTATIONS, footprints, named
from hybrid_kernels.evaluation.tables.governance import Ablation
from hybrid_kernels.evaluation.tables.quality import COMPARED, Quality
from hybrid_kernels.evaluation.tables.robustness import Robustness, excess_drops
from hybrid_kernels.evaluation.tables.shots import FewShot, shots_name
from hybrid_kernels.evaluation.tables.study import Setting, differing_settings
from hybrid_kernels.evaluation.tables.table import number
from hybrid_kernels.evaluation.tables.translation import Translations

_SUPERLATIVES = {
    "accuracy": "the highest accuracy",
    "ece": "the lowest calibration error (ECE)",
    "gap": "the smallest parity gap",
}
_NAMES = {"accuracy": "accuracy", "ece": "calibration error", "gap": "parity gap"}
_POINTS = Column("", "points")
#: comparisons of a metric that are all described; of more, those that are not told apart are counted
_IN_FULL = 4
Finding = tuple[str, str]


def quality_findings(found: Quality) -> list[Finding]:
    """Accuracy, calibration, parity; then where this project's methods stand."""
    if found.resampled is None:
        return []
    texts = [(_NAMES[m].capitalize(), _best(found, m)) for m in COMPARED if m in found.resampled.estimates]
    texts[0] = (texts[0][0], f"{texts[0][1]} {_guessing(found)}")
    if found.comparisons:
        texts += _standing(found.setting, found.comparisons, _NAMES, DIRECTIONS)
        texts.append(("Certainty", _certainty(found)))
    return texts


def unlike_finding(setting: Setting) -> Finding | None:
    """What keeps a comparison of methods from being one of the methods alone."""
    sentences = []
    if differing := differing_settings(setting.runs):
        sentences.append(
            f"The runs differ in their settings of {listing(differing)}: what tells their methods apart may be that."
        )
    if setting.machines[1:]:
        sentences.append(f"They ran on {listing(setting.machines)}: times of one are not those of the other.")
    here = setting.by_method()
    if here and (absent := [setting.label(name) for name in setting.methods if name not in here]):
        sentences.append(
            f"{listing(absent)} {'have' if absent[1:] else 'has'} no result with {setting.shown_shots}."
        )
    return ("Not alike", " ".join(sentences)) if sentences else None


def few_shot_finding(found: FewShot) -> Finding | None:
    """How the hybrid stands against the best baseline at each number of shots; its ablations are in the table."""
    setting = found.setting
    if not setting.own or setting.baselines == list(setting.methods):
        return None
    name, parts = setting.own[0], []
    for shots, quality in found.by_shots.items():
        baselines = [one for one in setting.baselines if one in quality.cells]
        if name not in quality.cells or not baselines or quality.resampled is None:
            continue
        best = quality.resampled.best(baselines, "accuracy")
        interval, _ = quality.resampled.difference(name, best, "accuracy")
        doubt = "" if _real(interval) else ", not told from none"
        parts.append(f"{shots_name(shots)} {_points(interval)}{doubt}")
    if not parts:
        return None
    return "Shots", f"{setting.label(name)} minus the best baseline, points of accuracy: {'; '.join(parts)}."


def translation_findings(found: Translations) -> list[Finding]:
    """The ranking, and where this project's methods stand in each metric."""
    texts = [("Translation", _ranking(found))]
    if found.resampled is not None:
        names = {"chrf": "chrF++", "bleu": "BLEU", "bits_per_byte": "bits per byte"}
        texts += _standing(found.setting, found.comparisons, names, found.resampled.directions)
    return texts


def _ranking(found: Translations) -> str:
    """By chrF++; what can be told from the best baseline, and whether copying the source does as well."""
    setting, metric = found.setting, translation.lead_metric(found)
    name, higher = ("chrF++", True) if metric == "chrf" else ("bits per byte", False)
    column = Column("", decimals=1 if higher else 3)
    values = {method: found.mean(method, metric) for method in found.cells}
    means = {method: float(value.value) for method, value in values.items()}  # type: ignore[arg-type]
    ordered = sorted(means, key=means.__getitem__, reverse=higher)
    best = ordered[0]

    def value(method: str) -> str:
        std = values[method].std
        text = number(means[method], column)
        return text if std is None else f"{text} ± {number(std, column)}"

    others = listing(f"{setting.label(m)} ({value(m)})" for m in ordered[1:]) if ordered[1:] else ""
    text = f"{setting.label(best)} has the best mean {name} over directions: {value(best)}"
    text += f", before {others}." if others else "."
    for comparison in found.comparisons:
        if comparison.metric != metric or comparison.method not in (best, *setting.own[:1]):
            continue
        low, high = (number(end, column, signed=True) for end in _ends(comparison.difference))
        text += (
            f" {setting.label(comparison.method)} minus the best baseline, {setting.label(comparison.baseline)}: "
            f"{number(comparison.difference.estimate, column, signed=True)} [{low}, {high}], "
            f"{comparison.mark.replace('distinguishable', 'told apart')} ({p_value(comparison.p_holm)})."
        )
    if not all(own[1:] for own in found.cells.values()):
        text += " With one seed nothing is known of how much another would change this."
    copies = [d["copy"]["chrf"] for d in found.directions.values() if "copy" in d]
    if copies and higher:
        copied = sum(copies) / len(copies)
        below = [setting.label(m) for m in ordered if means[m] < copied]
        text += f" Handing in the source scores {copied:.1f}"
        text += f", more than {listing(below)}." if below else "."
    return text


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def robustness_finding(found: Robustness) -> Finding:
    """The recipe that costs a method most, and whether the hybrid loses less than the best baseline.

    Ablations are left to the table.
    """
    parts = []
    for name, seeds in found.tables.items():
        if name in found.setting.own[1:]:
            continue
        drops = {
            recipe: sum(
                table[recipe]["accuracy_drop"]
                for one in seeds
                for table in one["per_language"].values()
                if recipe in table
            )
            / sum(recipe in table for one in seeds for table in one["per_language"].values())
            for recipe in found.recipes
        }
        worst = max(drops, key=drops.__getitem__)
        interval = found.drops.get(worst, {}).get(name)
        drop = (
            f"{100 * drops[worst]:.1f} points"
            if interval is None
            else f"{_points(interval, signed=False)} points"
        )
        doubt = "" if interval is None or _real(interval) else ", not told from none"
        parts.append(f"{found.setting.label(name)}: {worst.replace('_', ' ')}, {drop}{doubt}")
    text = f"The recipe that costs most accuracy: {'; '.join(parts)}."
    return "Robustness", " ".join([text, *_more_robust(found)])


def _more_robust(found: Robustness) -> list[str]:
    """A sentence, where there are baselines."""
    differences = excess_drops(found)
    if not differences:
        return []
    sides: dict[str, list[str]] = {"loses less": [], "loses more": []}
    for recipe, (baseline, interval) in differences.items():
        if _real(interval):
            side = sides["loses less" if interval.estimate < 0 else "loses more"]
            label = found.setting.label(baseline)
            side.append(f"{recipe.replace('_', ' ')} ({_points(interval)} points of {label})")
    level = len(differences) - sum(map(len, sides.values()))
    told = [f"{verdict} with {listing(recipes)}" for verdict, recipes in sides.items() if recipes]
    if level:
        told.append(f"cannot be told apart with {level} of {len(differences)} recipes")
    return [
        f"{found.setting.label(found.setting.own[0])}, against the baseline that is most accurate on the rows as they "
        f"are, {'; '.join(told)} (95 % intervals, not corrected for their number)."
    ]


def governance_finding(found: list[Ablation]) -> Finding | None:
    sentences = []
    for one in found:
        if not {"all", "none"} <= set(one.variants):
            continue
        parts = []
        for metric in COMPARED:
            if metric not in one.metrics["all"][0]:
                continue
            difference = one.difference("all", "none", metric)
            assert isinstance(difference.value, float)
            change = f"{_NAMES[metric]} by {number(difference.value, _POINTS, signed=True)}"
            if difference.interval is not None:
                change += f" {_brackets(difference.interval, signed=True)}"
            doubt = difference.interval is not None and not _real(difference.interval)
            parts.append(f"{change} points{' (not told from none)' if doubt else ''}")
        removed = one.kept["none"] - one.kept["all"]
        sentences.append(
            f"{one.setting.label(one.method)}: all steps together remove {removed:,} of {one.kept['none']:,} rows and "
            f"change {listing(parts)}{'.' if one.resampled else '; whether by chance cannot be told.'}"
        )
    return ("Governance", " ".join(sentences)) if sentences else None


def cost_finding(setting: Setting, best: str | None) -> Finding | None:
    """The winner's cost, the extremes, and this package's implementations against the stock ones."""
    found = [(name, one) for _, name, implementations in footprints(setting) for one in implementations]
    if not found:
        return None
    sentences = []
    if best is not None:
        method = setting.methods[best]
        share = 100 * method.trainable_parameters / setting.results.model.parameters
        own = [one for name, one in found if name == best]
        size = f"{method.trainable_parameters:,} parameters ({share:.2g} % of the model's)"
        text = f"{setting.label(best)}, first in accuracy, trains {size}"
        if own:
            cheapest = min(own, key=lambda one: one.step_seconds)
            text += f" and takes {cheapest.step_time_ratio:.2f}× the frozen model's time a step"
            if own[1:]:
                text += f" by {IMPLEMENTATIONS.get(cheapest.implementation, cheapest.implementation)}"
        sentences.append(f"{text}.")
    ordered = sorted(found, key=lambda pair: pair[1].step_seconds)

    def described(pair: tuple[str, object]) -> str:
        name, one = pair
        implementation = str(getattr(one, "implementation"))  # noqa: B009
        return f"{named(setting, name)}, {IMPLEMENTATIONS.get(implementation, implementation)}"

    if len(ordered) > 1:
        first, last = ordered[0], ordered[-1]
        sentences.append(
            f"Time per step runs from {1000 * first[1].step_seconds:.0f} ms ({described(first)}) to "
            f"{1000 * last[1].step_seconds:.0f} ms ({described(last)})."
        )
    ratios = []
    for _, name, implementations in footprints(setting):
        stock = implementations[0]
        for one in implementations[1:]:
            apart = (
                stock.step_time_spread[0] > one.step_time_spread[1]
                or one.step_time_spread[0] > stock.step_time_spread[1]
            )
            doubt = "" if apart else " (quartiles overlap)"
            ratios.append(f"{named(setting, name)} {one.step_seconds / stock.step_seconds:.2f}{doubt}")
    if ratios:
        sentences.append(
            f"This package's kernels take, of the stock implementation's time: {listing(ratios)}."
        )
    return ("Cost", " ".join(sentences)) if sentences else None


def cut_finding(setting: Setting) -> Finding | None:
    missing = [name for run in setting.runs for name in run.results.missing]
    if not missing:
        return None
    total = len(missing) + len(setting.cells)
    return (
        "Cut",
        f"{len(missing)} of {total} cells have no result; they are listed with the reason under “What was cut”.",
    )


def leader(found: Quality) -> str | None:
    """The one method with the highest accuracy; None of one method, or where several share it."""
    if found.resampled is None or len(found.cells) < 2:
        return None
    best, *others = sorted(found.cells, key=lambda name: -found.resampled.interval(name, "accuracy").estimate)  # type: ignore[union-attr]
    reached, next_best = (found.resampled.interval(name, "accuracy").estimate for name in (best, others[0]))
    return None if _same(reached, next_best) else best


def _best(found: Quality, metric: str) -> str:
    assert found.resampled is not None
    best = found.resampled.best(found.cells, metric)
    interval = found.resampled.interval(best, metric)
    unit = "points" if metric == "gap" else "%"
    value = f"{100 * interval.estimate:.1f} {unit} {_brackets(interval)}"
    label = found.setting.label(best)
    if len(found.cells) == 1:
        return f"{label}: {value}."
    level = [
        found.setting.label(name)
        for name in found.cells
        if _same(found.resampled.interval(name, metric).estimate, interval.estimate)
    ]
    text = f"{listing(level)} {'share' if level[1:] else 'has'} {_SUPERLATIVES[metric]}: {value}."
    own = [comparison for comparison in found.comparisons if comparison.metric == metric]
    baseline = own[0].baseline
    reached = found.resampled.interval(baseline, metric).estimate
    if baseline == best:
        text += f" Against {label}" if level[1:] else " Against it"
    else:
        text += (
            f" The best baseline is {found.setting.label(baseline)}, {100 * reached:.1f} {unit}; against it"
        )
    groups: dict[Mark, list[str]] = {mark: [] for mark in MARKS}
    level_count = 0
    for comparison in own:
        told_apart = comparison.mark != "not distinguishable"
        if len(own) > _IN_FULL and not told_apart and comparison.method not in found.setting.own[:1]:
            level_count += 1
            continue
        described = (
            f"{found.setting.label(comparison.method)} ({_points(comparison.difference)} points, "
            f"{p_value(comparison.p_holm)})"
        )
        groups[comparison.mark].append(described)
    if level_count:
        groups["not distinguishable"].append(f"{level_count} others")
    parts = [
        f" {mark.replace('distinguishable', 'told apart')}: {listing(members)}"
        for mark, members in groups.items()
        if members
    ]
    return text + ";".join(parts) + "."


def _standing(
    setting: Setting, comparisons: Iterable[Comparison], names: Mapping[str, str], directions: Directions
) -> list[Finding]:
    """Plainly, whether this project's methods win or not; two topics, the second where they do not.

    Of the hybrid itself in full, of its ablations what is told apart.
    """
    level_count = 0
    wins: dict[str, list[str]] = {}
    losses: dict[str, list[str]] = {}
    for comparison in comparisons:
        if comparison.method not in setting.own or comparison.baseline in setting.own:
            continue
        if comparison.method != setting.own[0] and comparison.mark == "not distinguishable":
            level_count += 1
            continue
        label, baseline = (setting.label(name) for name in (comparison.method, comparison.baseline))
        difference = comparison.difference.estimate
        ahead = (difference > 0) == directions[comparison.metric][0]
        verdict = f"{'ahead of' if ahead else 'behind'} {baseline}, not told apart"
        if _same(difference, 0.0):
            verdict = f"level with {baseline}"
        if comparison.mark != "not distinguishable":
            verdict = f"{comparison.mark} than {baseline}"
        side = wins if comparison.mark == "significantly better" else losses
        side.setdefault(label, []).append(f"{names[comparison.metric]} ({verdict})")
    said = {
        topic: " ".join(f"{label}: {'; '.join(texts)}." for label, texts in side.items())
        for topic, side in (
            ("Where the hybrid wins", wins),
            ("Where the hybrid does not win", losses),
        )
    }
    if level_count:
        what = "comparison is" if level_count == 1 else "comparisons are"
        said["Where the hybrid does not win"] += f" Of its ablations, {level_count} {what} not told apart."
    return [(topic, text.strip()) for topic, text in said.items() if text]


def _certainty(found: Quality) -> str:
    counts = sorted({len(own) for own in found.seeds.values()})
    repeats = (
        ""
        if not counts
        else "Each method was trained once: what another seed would change is not known, and comes on top."
        if counts == [1]
        else f"Methods were trained with {' or '.join(map(str, counts))} seeds, whose spread is counted in"
        + (", where there are two in common; other differences are not tested." if counts[0] == 1 else ".")
    )
    tested = sum(comparison.tested for comparison in found.comparisons)
    return (
        f"In brackets: 95 % intervals, each by itself. p-values are corrected for the {tested} "
        "comparisons with the best baselines and decide what is told apart, so a difference whose interval leaves 0 "
        f"out may not be. Intervals of calibration error and gap take off what chance adds, and may lie below the "
        f"number. {repeats}"
    )


def _guessing(found: Quality) -> str:
    assert found.resampled is not None
    classes = round(1 / found.chance)
    text = f"Guessing among {classes} classes scores {100 * found.chance:.1f} %."
    intervals = {name: found.resampled.interval(name, "accuracy") for name in found.cells}
    at = [found.setting.label(n) for n, i in intervals.items() if i.low <= found.chance <= i.high]
    under = [found.setting.label(n) for n, i in intervals.items() if i.high < found.chance]
    if at:
        text += f" Not distinguishable from guessing: {listing(at)}."
    if under:
        text += f" Worse than guessing: {listing(under)}."
    return text


def _points(interval: Interval, *, signed: bool = True) -> str:
    return f"{number(interval.estimate, _POINTS, signed=signed)} {_brackets(interval, signed=signed)}"


def _brackets(interval: Interval, *, signed: bool = False) -> str:
    low, high = (number(end, _POINTS, signed=signed) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"


def _same(one: float, other: float) -> bool:
    """Sums in another order differ in the last digits."""
    return abs(one - other) < 1e-12


def _real(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def listing(items: Iterable[str]) -> str:
    """a; a and b; a, b and c"""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last
