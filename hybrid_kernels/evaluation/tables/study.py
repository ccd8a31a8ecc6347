"""The runs behind a report: their results.json, and what their cells left on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hybrid_kernels.evaluation.predictions import Predictions
from hybrid_kernels.evaluation.results import CellResult, Results, parse_results
from hybrid_kernels.evaluation.significance import Bootstrap, Comparison
from hybrid_kernels.training.files import load_predictions, read_json
from hybrid_kernels.training.method_config import distinct_labels

Shots = int | Literal["all"]


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of a run: what results.json says of it, and its folder."""

    result: CellResult
    folder: Path

    @property
    def source(self) -> str:
        """How a table refers to it."""
        return str(self.folder)

    @property
    def trains(self) -> bool:
        """False of the pretrained model as it is, which no seed and no number of shots changes."""
        return self.result.train_loss is not None

    @cached_property
    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of predictions.npz by part; ValueError where the file is not there or is damaged."""
        path = self.folder / "predictions.npz"
        try:
            return load_predictions(path)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}, of a cell in results.json, cannot be read: {error}") from None

    @cached_property
    def _predictions(self) -> dict[str, Predictions]:
        return {}

    def predictions(self, part: str = "test") -> Predictions:
        """A classifier's, of one part."""
        if part not in self._predictions:
            found = self.arrays[part]
            self._predictions[part] = Predictions(
                np.exp(found["log_probabilities"].astype(np.float64)),
                *(found[name] for name in ("labels", "languages", "ids", "clusters")),
            )
        return self._predictions[part]

    @cached_property
    def trained(self) -> dict[str, Any]:
        """`trainer.Trained` as a dict; empty where the run's folder no longer has it."""
        path = self.folder / "trained.json"
        return dict(read_json(path)["result"]) if path.is_file() else {}


@dataclass(frozen=True, eq=False)
class Run:
    """A run's results and its folder."""

    folder: Path
    results: Results

    @cached_property
    def cells(self) -> list[Cell]:
        return [Cell(one, self.folder / one.folder) for one in self.results.cells]

    @property
    def machine(self) -> str:
        return self.results.machine.gpu or self.results.machine.cpu

    @property
    def main_variant(self) -> str:
        return "none" if self.results.governance is None else "all"

    @cached_property
    def swept(self) -> set[Shots]:
        """Numbers of shots of its own sweep; not one that its governance ablation alone has."""
        found = {
            cell.result.shots
            for cell in self.cells
            if cell.result.governance == self.main_variant and cell.trains
        }
        data = self.results.config.get("data", {})
        if "shots" not in data:
            return found
        own = data["shots"] if isinstance(data["shots"], list) else [data["shots"]]
        return found & {"all" if shots is None else shots for shots in own}


def load_run(folder: str | os.PathLike[str]) -> Run:
    """FileNotFoundError where there is no results.json; ValueError names what is malformed in it."""
    folder = Path(folder)
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no results.json; `hybrid-kernels run` or `train` writes it at the end, the same with "
            "--seed N after that seed's cells alone; those that are done are not repeated"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    try:
        return Run(folder, parse_results(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True, eq=False)
class Setting:
    """Cells that can be compared: one task, model and set of evaluation rows; of one run or several.

    Attributes:
        title: tells it from the report's other settings; empty if there is one only.
    """

    title: str
    runs: list[Run]

    @cached_property
    def methods(self) -> dict[str, CellResult]:
        """By name, in the order of the runs' configurations: what the first of its cells says."""
        found: dict[str, CellResult] = {}
        for run in self.runs:
            order = {method.name: i for i, method in enumerate(run.results.methods)}
            cells = sorted(run.results.cells, key=lambda cell: order.get(cell.method, len(order)))
            for cell in cells:
                found.setdefault(cell.method, cell)
        return found

    @property
    def results(self) -> Results:
        return self.runs[0].results

    @property
    def reference(self) -> str:
        return self.results.reference_language

    @property
    def translates(self) -> bool:
        return any("directions" in cell.result.metrics.get("test", {}) for cell in self.cells)

    @cached_property
    def cells(self) -> list[Cell]:
        return [cell for run in self.runs for cell in run.cells]

    @property
    def all_shots(self) -> list[Shots]:
        """Ascending, "all" last, of the runs' sweeps."""
        found = {shots for run in self.runs for shots in run.swept} or {
            cell.result.shots for cell in self.cells
        }
        return sorted(found, key=lambda shots: float("inf") if shots == "all" else shots)

    @property
    def main_shots(self) -> Shots:
        """Those of the main results: the most that as many methods as possible were trained with.

        By the sweeps of the runs: a cell that failed changes nothing.
        """

        def methods(shots: Shots) -> int:
            return len(
                {c.result.method for run in self.runs if shots in run.swept for c in run.cells if c.trains}
            )

        return max(reversed(self.all_shots), key=methods)

    def place(self, method: str) -> int:
        """The method's index, by which it has its colour."""
        return list(self.methods).index(method)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The methods' labels by name."""
        return distinct_labels({name: one.label for name, one in self.methods.items()})

    def label(self, method: str) -> str:
        return self.labels[method]

    @property
    def own(self) -> list[str]:
        """This project's methods: the hybrid and its ablations.

        By what the configuration says they are: a baseline on this package's kernels remains a baseline.
        """
        kinds = {name: one["method"] for run in self.runs for name, one in _methods(run).items()}
        return [name for name in self.methods if kinds.get(name) == "hybrid"]

    @property
    def baselines(self) -> list[str]:
        """What the others are compared with: all that is not this project's, or all methods if that is none or all."""
        others = [name for name in self.methods if name not in self.own]
        return others or list(self.methods)

    @property
    def machines(self) -> list[str]:
        """Those that the runs were made on."""
        return list(dict.fromkeys(run.machine for run in self.runs))

    def by_method(self, shots: Shots | None = None, variant: str | None = None) -> dict[str, list[Cell]]:
        """The cells of each method that has any, by ascending seed.

        The pretrained model as it is stands beside every number of shots, as often as there are seeds: see `seeds_of`.

        Args:
            shots: `main_shots` if None.
            variant: of governance; each run's own if None.
        """
        shots = self.main_shots if shots is None else shots
        found: dict[str, list[Cell]] = {name: [] for name in self.methods}
        for run in self.runs:
            for cell in run.cells:
                here = not cell.trains or cell.result.shots == shots
                if here and cell.result.governance == (variant or run.main_variant):
                    found[cell.result.method].append(cell)
        found = {name: sorted(own, key=lambda cell: cell.result.seed) for name, own in found.items() if own}
        seeds = {cell.result.seed for own in found.values() for cell in own if cell.trains}
        return {name: own if own[0].trains else own[:1] * (len(seeds) or 1) for name, own in found.items()}

    def describe(self, cells: dict[str, list[Cell]]) -> str:
        """For the note of a table of `by_method`: its seeds, the methods it lacks, and in what its runs differ."""
        text = _seeds_in_words(cells)
        if absent := [self.label(name) for name in self.methods if name not in cells]:
            text += f"Not trained with {self.shown_shots}: {', '.join(absent)}. "
        if differing := differing_settings(self.runs):
            text += f"The runs of these methods differ in their settings of {', '.join(differing)}. "
        return text

    @property
    def shown_shots(self) -> str:
        return shots_in_words(self.main_shots, "direction" if self.translates else "language")


@dataclass(frozen=True, eq=False)
class Resampled:
    """A setting's methods with their resampled metrics.

    Attributes:
        cells: method → its cells, as `Setting.by_method` aligns them.
        resampled: None where there can be no intervals; `why` says why.
    """

    setting: Setting
    cells: dict[str, list[Cell]]
    resampled: Bootstrap | None
    why: str

    def compared(self, metrics: Sequence[str] | None = None) -> list[Comparison]:
        """Each method against the best baseline; none of one method. `metrics`: all that were resampled if None."""
        if self.resampled is None or len(self.cells) < 2:
            return []
        baselines = [name for name in self.setting.baselines if name in self.cells] or list(self.cells)
        return self.resampled.compare(baselines, metrics)


def shots_in_words(shots: Shots, each: str = "language") -> str:
    if shots == "all":
        return "all training rows"
    return "no examples (the source stage alone)" if shots == 0 else f"{shots} examples a {each}"


def seeds_of(cells: dict[str, list[Cell]]) -> dict[str, list[int]]:
    """The seeds of each method's cells, in the order of `Setting.by_method`; of the pretrained model, all there are."""
    trained = sorted({cell.result.seed for own in cells.values() for cell in own if cell.trains})
    return {
        name: [cell.result.seed for cell in own] if own[0].trains or not trained else trained
        for name, own in cells.items()
    }


def _seeds_in_words(cells: dict[str, list[Cell]]) -> str:
    """For a table's note: over how many seeds its numbers are means."""
    counts = sorted({len(own) for own in cells.values() if own[0].trains})
    if not counts:
        return "Nothing was trained. "
    if counts == [1]:
        return "One seed: how much another seed would change is not known, and no figure here contains it. "
    text = f"Mean ± standard deviation over {' or '.join(map(str, counts))} seeds. "
    if counts[0] == 1:
        text += (
            "A method of one seed has an interval that does not contain how seeds vary, and is not compared. "
        )
    return text


def load_study(folders: Sequence[str | os.PathLike[str]]) -> list[Setting]:
    """The settings of several runs, in the order in which they are first met.

    Runs are joined where they have one task, model, data source and evaluation rows, and no cell in common; those that
    have a method in common only if its cells are further seeds or shots of it, all else being equal.

    Raises:
        ValueError: no folder, one twice, or a malformed results.json.
        FileNotFoundError: a folder without results.json.
    """
    if not folders:
        raise ValueError("folders is empty; name at least one run")
    places = [Path(folder).resolve() for folder in folders]
    if twice := [str(one) for i, one in enumerate(places) if one in places[:i]]:
        raise ValueError(f"folders names {twice[0]!r} twice")
    groups: dict[Any, list[Run]] = {}
    for run in map(load_run, folders):
        key = _comparable(run)
        while any(_clash(other, run) for other in groups.get(key, [])):
            key = (key, "again")
        groups.setdefault(key, []).append(run)
    settings = []
    for runs in groups.values():
        title = " and ".join(dict.fromkeys(run.results.title for run in runs)) if len(groups) > 1 else ""
        settings.append(Setting(title, runs))
    return settings


def _comparable(run: Run) -> Any:
    results = run.results
    rows = frozenset(run.cells[0].arrays["test"]["ids"].tolist())
    return results.config.get("task"), results.model.name, results.data.source, rows


def _clash(one: Run, other: Run) -> bool:
    """Whether a cell of both is the same one, or a method of both was trained in two ways."""
    shared = {cell.method for cell in one.results.cells} & {cell.method for cell in other.results.cells}
    if not shared:
        return False
    mine, theirs = _methods(one), _methods(other)
    return (
        bool(_identities(one) & _identities(other))
        or bool(differing_settings([one, other]))
        or any(_differ(mine.get(name), theirs.get(name)) for name in shared)
    )


def _identities(run: Run) -> set[tuple[Any, ...]]:
    return {(cell.method, cell.seed, cell.shots, cell.governance) for cell in run.results.cells}


def _methods(run: Run) -> dict[str, Any]:
    """The configuration's methods by name."""
    return {one.get("name") or one["method"]: one for one in run.results.config.get("methods", [])}


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Sections of the configuration in which the trainings of runs differ, but for seeds and shots."""
    first, *others = [_settings(run) for run in runs]
    return [name for name in first if any(_differ(first[name], other[name]) for other in others)]


_SETTINGS = ("data", "training", "model", "governance", "source_stage", "budget", "prompt", "translation")
#: keys in them that joined runs of one method may vary, or that change nothing
_VARIED = {"shots", "seeds", "checkpoint_steps", "tensorboard"}


def _settings(run: Run) -> dict[str, Any]:
    found = {name: run.results.config.get(name) for name in _SETTINGS}
    return {
        name: {key: value for key, value in own.items() if key not in _VARIED}
        if isinstance(own, dict)
        else own
        for name, own in found.items()
    }


def _differ(one: Any, other: Any) -> bool:
    """Of settings; a key that one lacks came with a later version, whose default is what was done before."""
    if isinstance(one, dict) and isinstance(other, dict):
        return any(_differ(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one != other)
