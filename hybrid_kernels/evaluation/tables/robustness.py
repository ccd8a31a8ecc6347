"""What light changes of spelling cost: accuracy and agreement with the predictions for the unchanged rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from hybrid_kernels.evaluation.parity import script_of
from hybrid_kernels.evaluation.predictions import Predictions
from hybrid_kernels.evaluation.robustness import robustness_metrics, romanised_metrics
from hybrid_kernels.evaluation.robustness.metrics import script_code
from hybrid_kernels.evaluation.significance import Interval
from hybrid_kernels.evaluation.tables.quality import name_and_code, resample
from hybrid_kernels.evaluation.tables.study import Cell, Setting, Shots, seeds_of, shots_in_words
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, number, over_seeds

PREFIX = "perturbed/"
_TOPS = ("Accuracy drop", "Consistency")


@dataclass(frozen=True, eq=False)
class Robustness:
    """The cells that predicted the same changed rows.

    Attributes:
        cells: method → its cells, of one number of shots.
        tables: method → `robustness_metrics` of each seed.
        drops: recipe → method → the interval of its accuracy drop; without recipes for which there can be none.
        why: recipe → why there can be none.
        left_out: methods with cells that predicted others, and recipes that not all methods were tried with.
    """

    setting: Setting
    shots: Shots
    cells: dict[str, list[Cell]]
    tables: dict[str, list[dict[str, Any]]]
    drops: dict[str, dict[str, Interval]]
    why: dict[str, str]
    left_out: tuple[list[str], list[str]]

    @property
    def recipes(self) -> list[str]:
        first = next(iter(self.tables.values()))[0]["per_language"]
        return list(dict.fromkeys(recipe for table in first.values() for recipe in table))

    def sources(self, method: str) -> tuple[str, ...]:
        return tuple(cell.source for cell in self.cells[method])


def robustness(setting: Setting) -> Robustness | None:
    """Of the main results' shots or else the most whose cells predicted changed rows; None where none did."""
    for shots in (setting.main_shots, *reversed(setting.all_shots)):
        there = {
            name: with_parts
            for name, own in setting.by_method(shots).items()
            if (with_parts := [cell for cell in own if _parts(cell)])
        }
        if there:
            cells, parts = _comparable(setting, there)
            tables = {name: [_measure(cell, parts) for cell in own] for name, own in cells.items()}
            drops, why = _drops(setting, cells, parts)
            every = dict.fromkeys(
                _recipe(part) for own in there.values() for cell in own for part in _parts(cell)
            )
            left_out = (
                [setting.label(name) for name in there if cells.get(name) != there[name]],
                [recipe for recipe in every if recipe not in map(_recipe, parts)],
            )
            return Robustness(setting, shots, cells, tables, drops, why, left_out)
    return None


def recipe_table(found: Robustness) -> Table:
    """Recipes × methods: drop and consistency, means over the languages that the recipe is for."""
    rows = []
    for recipe in found.recipes:
        first = next(iter(found.tables.values()))[0]["per_language"]
        codes = [code for code, table in first.items() if recipe in table]
        per_method = {
            name: [[one["per_language"][code][recipe] for code in codes] for one in seeds]
            for name, seeds in found.tables.items()
        }
        n = sum(first[code][recipe]["n"] for code in codes)
        rows.append(
            Row(
                f"{recipe.replace('_', ' ')} ({_codes(codes)}), {n:,} rows",
                _values(found, per_method, found.drops.get(recipe, {})),
            )
        )
    note = (
        f"With {shots_in_words(found.shots)}. Of the rows that a recipe changes, whose number is given; a language is "
        "named where it changes any. Accuracy drop: of these rows as they are minus as changed, in points; "
        "consistency: share with the same predicted class, in %. Means over the languages named."
    )
    methods, recipes = (", ".join(names).replace("_", " ") for names in found.left_out)
    if methods:
        note += f" Left out, as their rows were changed otherwise: {methods}."
    if recipes:
        note += f" Recipes left out, as not all methods were tried with the same rows of them: {recipes}."
    if found.drops:
        note += (
            " In brackets: 95 % intervals of a paired bootstrap, not corrected for their number; a drop whose interval "
            "holds 0 is not distinguishable from none."
        )
        if any(len(drops) < len(found.cells) for drops in found.drops.values()):
            note += " None for a method of one seed, where others have more."
    for reason in dict.fromkeys(found.why.values()):
        without = ", ".join(recipe.replace("_", " ") for recipe, why in found.why.items() if why == reason)
        note += f" No intervals for {without}: {reason}."
    return _table("recipes", "Robustness by recipe", "Recipe", found, rows, note)


def place_table(found: Robustness, by: str) -> Table:
    """Scripts or languages × methods: means over recipes; `by`: "per_script" or "per_language"."""
    rows = []
    first = next(iter(found.tables.values()))[0]
    names = {script_code(code): script_of(code) for code in first["per_language"]}
    for place in first[by]:
        per_method = {
            name: [list(one[by][place].values()) for one in seeds] for name, seeds in found.tables.items()
        }
        worst = {name: _worst(seeds, by, place) for name, seeds in found.tables.items()}
        values = _values(found, per_method, {}, worst)
        rows.append(Row(names[place] if by == "per_script" else name_and_code(place), values))
    script = by == "per_script"
    return _table(
        "robustness_scripts" if script else "robustness_languages",
        f"Robustness by {'script' if script else 'language'}: means over recipes",
        "Script" if script else "Language",
        found,
        rows,
        "Below each drop: the recipe that costs most, its drop, and how many rows it changes.",
        folded=not script,
    )


def romanised_table(setting: Setting) -> Table | None:
    """Languages × methods: rows that their writers romanised against the others; None where there is no such row."""
    ids = {one for run in setting.runs for one in run.results.data.romanised}
    cells = setting.by_method()
    if not ids or not cells:
        return None
    columns: list[Column] = []
    found: dict[str, list[dict[str, dict[str, Any]]]] = {}
    for name, own in cells.items():
        found[name] = []
        for cell in own:
            p = cell.predictions()
            found[name].append(
                romanised_metrics(p.probabilities, p.labels, p.languages.tolist(), np.isin(p.ids, list(ids)))
            )
        top = setting.label(name)
        columns += [Column("Native", "%", 1, top=top), Column("Romanised", "%", 1, top=top)]
        columns += [Column("Drop", "points", 1, signed=True, top=top)]
    rows = []
    for code in next(iter(found.values()))[0]:
        values = []
        for name, seeds in found.items():
            sources = tuple(cell.source for cell in cells[name])
            own_rows = [one[code] for one in seeds]
            values += [
                over_seeds([r[kind]["accuracy"] for r in own_rows], sources)
                for kind in ("native", "romanised")
            ]
            # The interval of the rows' sampling is that of one training.
            only = own_rows[0] if len(set(sources)) == 1 else None
            drop = over_seeds([r["accuracy_drop"] for r in own_rows], sources)
            interval = Interval(drop.value, *only["interval"]) if only else None  # type: ignore[arg-type]
            values.append(Value(drop.value, drop.std, interval, sources=sources))
        n = next(iter(found.values()))[0][code]
        rows.append(
            Row(
                f"{name_and_code(code)}, {n['romanised']['n']} of {n['romanised']['n'] + n['native']['n']} rows",
                values,
            )
        )
    if not rows:
        return None
    return Table(
        "romanised",
        "Rows that their writers romanised",
        "Language",
        columns,
        rows,
        f"Accuracy with {setting.shown_shots} on hypotheses in Latin letters against the language's other rows: "
        "different rows, so a difference is not the romanisation's alone. In brackets, of a single training: 95 % "
        "intervals of two independent proportions (Newcombe 1998), which take every row for itself, though about three "
        "share a premise.",
    )


def _worst(seeds: Sequence[dict[str, Any]], by: str, place: str) -> str:
    """The recipe with the greatest mean drop over seeds, that drop in points, and the number of rows."""
    means = {
        recipe: fmean(one[by][place][recipe]["accuracy_drop"] for one in seeds)
        for recipe in seeds[0][by][place]
    }
    worst = max(means, key=means.__getitem__)
    n = seeds[0][by][place][worst]["n"]
    drop = number(means[worst], Column("", "points", signed=True))
    return f"{worst.replace('_', ' ')} {drop}, {n:,} rows"


def _parts(cell: Cell) -> list[str]:
    return [part for part in cell.arrays if part.startswith(PREFIX)]


def _recipe(part: str) -> str:
    return part.removeprefix(PREFIX)


def _comparable(setting: Setting, cells: dict[str, list[Cell]]) -> tuple[dict[str, list[Cell]], list[str]]:
    """The cells that share changed rows with the first one, and the parts that all of them share."""
    run_of = {cell: run for run in setting.runs for cell in run.cells}

    def changes(cell: Cell) -> Any:
        """What decides how rows are changed."""
        settings = run_of[cell].results.config.get("evaluation", {}).get("robustness") or {}
        return {key: value for key, value in settings.items() if key not in ("recipes", "shots")}

    first = next(iter(cells.values()))[0]
    parts = _parts(first)
    kept: dict[str, list[Cell]] = {}
    for name, own in cells.items():
        for cell in own:
            common = [part for part in parts if _same_rows(first, cell, part)]
            if common and changes(cell) == changes(first):
                parts = common
                kept.setdefault(name, []).append(cell)
    return kept, parts


def _same_rows(one: Cell, other: Cell, part: str) -> bool:
    return part in other.arrays and set(one.arrays[part]["ids"].tolist()) == set(
        other.arrays[part]["ids"].tolist()
    )


def _measure(cell: Cell, parts: Sequence[str]) -> dict[str, Any]:
    clean = cell.predictions()
    place = {name: i for i, name in enumerate(clean.ids.tolist())}
    varied = {}
    for part in parts:
        changed = cell.predictions(part)
        rows = np.array([place[name] for name in changed.ids.tolist()])
        varied[_recipe(part)] = rows, changed.probabilities
    return robustness_metrics(clean.probabilities, clean.labels, clean.languages.tolist(), varied)


def _drops(
    setting: Setting, cells: dict[str, list[Cell]], parts: Sequence[str]
) -> tuple[dict[str, dict[str, Interval]], dict[str, str]]:
    """Of each recipe the intervals by method, or why there are none.

    Changed and unchanged rows are resampled together, as two methods would be.
    """
    found: dict[str, dict[str, Interval]] = {}
    reasons: dict[str, str] = {}
    for part in parts:
        pairs: dict[str, list[Predictions]] = {}
        for name, own in cells.items():
            both = [_pair(cell, part) for cell in own]
            pairs[f"clean/{name}"] = [clean for clean, _ in both]
            pairs[f"changed/{name}"] = [changed for _, changed in both]
        resampled, why = resample(pairs, ("accuracy",), setting.reference)
        if resampled is None:
            reasons[_recipe(part)] = why
            continue
        drops = {
            name: resampled.difference(f"clean/{name}", f"changed/{name}", "accuracy")[0] for name in cells
        }
        found[_recipe(part)] = {name: drop for name, drop in drops.items() if np.isfinite(drop.low)}
    return found, reasons


def _pair(cell: Cell, part: str) -> tuple[Predictions, Predictions]:
    """The unchanged and the changed rows of a part, in the clusters of the unchanged ones."""
    clean, changed = cell.predictions(), cell.predictions(part)
    place = {name: i for i, name in enumerate(clean.ids.tolist())}
    rows = np.array([place[name] for name in changed.ids.tolist()])
    assert clean.clusters is not None
    shared = (clean.labels[rows], clean.languages[rows], clean.ids[rows], clean.clusters[rows])
    return Predictions(clean.probabilities[rows], *shared), Predictions(changed.probabilities, *shared)


def _values(
    found: Robustness,
    per_method: dict[str, list[list[dict[str, float]]]],
    intervals: dict[str, Interval],
    details: dict[str, str] | None = None,
) -> list[Value]:
    """Drops of all methods, then consistencies; each seed has the tables that are averaged."""
    drops, same = [], []
    for name, seeds in per_method.items():
        sources = found.sources(name)
        drops.append(
            over_seeds(
                [fmean(t["accuracy_drop"] for t in tables) for tables in seeds],
                sources,
                interval=intervals.get(name),
                detail=(details or {}).get(name, ""),
            )
        )
        same.append(over_seeds([fmean(t["consistency"] for t in tables) for tables in seeds], sources))
    return [*drops, *same]


def _table(
    name: str, caption: str, first: str, found: Robustness, rows: list[Row], note: str, folded: bool = False
) -> Table:
    labels = [found.setting.label(method) for method in found.cells]
    drop, same = _TOPS
    columns = [Column(label, "points", 1, "lower", True, top=drop) for label in labels]
    columns += [Column(label, "%", 1, "higher", top=same) for label in labels]
    return Table(name, caption, first, columns, rows, note, folded)


def _codes(codes: Sequence[str]) -> str:
    return ", ".join(codes) if len(codes) <= 6 else f"{len(codes)} languages"


def excess_drops(found: Robustness) -> dict[str, tuple[str, Interval]]:
    """recipe → (baseline, the hybrid's accuracy drop minus the baseline's); without recipes of which there are none.

    The baseline is that which is most accurate on the rows as they are: one that guesses has no accuracy to lose.
    """
    setting, cells = found.setting, found.cells
    own = next((name for name in setting.own if name in cells), None)
    baselines = [name for name in setting.baselines if name in cells and name != own]
    if own is None or not baselines:
        return {}
    seeds = seeds_of(cells)
    differences = {}
    for recipe in found.recipes:
        pairs = {name: [_pair(cell, PREFIX + recipe) for cell in cells[name]] for name in (own, *baselines)}
        means = {name: fmean(_macro_accuracy(clean) for clean, _ in pairs[name]) for name in baselines}
        best = max(means, key=means.__getitem__)
        both = {
            f"{kind}/{name}": [pair[place] for pair in pairs[name]]
            for place, kind in enumerate(("clean", "changed"))
            for name in (own, best)
        }
        names = {key: seeds[key.partition("/")[2]] for key in both}
        resampled, _ = resample(both, ("accuracy",), setting.reference, names)
        if resampled is None:
            continue
        drops = replace(
            resampled,
            estimates={"drop": _lost(resampled.estimates["accuracy"], (own, best))},
            resampled={"drop": _lost(resampled.resampled["accuracy"], (own, best))},
            seeds={name: seeds[name] for name in (own, best)},
            directions={"drop": (False, (-1.0, 1.0))},
        )
        differences[recipe] = best, drops.difference(own, best, "drop")[0]
    return differences


def _macro_accuracy(predictions: Predictions) -> float:
    right = predictions.probabilities.argmax(1) == predictions.labels
    return fmean(float(right[predictions.languages == code].mean()) for code in set(predictions.languages))


def _lost(accuracies: dict[str, np.ndarray], methods: Sequence[str]) -> dict[str, np.ndarray]:
    """method → its accuracy on the rows as they are minus that on the changed ones."""
    return {name: accuracies[f"clean/{name}"] - accuracies[f"changed/{name}"] for name in methods}
