"""The report's parts, in the paper's order; templates print them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hybrid_kernels.evaluation.report import figures, findings
from hybrid_kernels.evaluation.results import Rejection
from hybrid_kernels.evaluation.tables import (
    Setting,
    Table,
    cost,
    governance,
    quality,
    robustness,
    shots,
    training,
)
from hybrid_kernels.evaluation.tables import translation as translations
from hybrid_kernels.evaluation.tables.quality import Quality

GLOSSARY = (
    ("Accuracy", "Share of rows answered correctly, averaged over languages with equal weight (macro)."),
    ("Macro-F1", "Mean of F1 over classes, then over languages."),
    (
        "NLL",
        "Negative log-likelihood of the right answer, in nats: punishes confident mistakes. Lower is better.",
    ),
    (
        "Brier",
        "Squared error of the probabilities, summed over classes, from 0 (perfect) to 2. Lower is better.",
    ),
    (
        "ECE",
        "Expected calibration error: how far confidence is from accuracy, on average over 15 bins of confidence, of "
        "equal width or of equal mass. Mean over languages. With few rows chance alone makes it larger than 0.",
    ),
    (
        "Parity gap",
        "Accuracy in the reference language minus accuracy in the worst one, in percentage points. Lower is more even.",
    ),
)


TRANSLATION_GLOSSARY = (
    (
        "BLEU",
        "Precision of word n-grams with a penalty for brevity, 0 to 100, by sacrebleu; see its signature.",
    ),
    ("chrF++", "F-score of character and word n-grams, 0 to 100, by sacrebleu. It needs no tokens."),
    (
        "Bits per byte",
        "−log₂ of the reference translation's probability given the prompt, per byte of its UTF-8. Lower is better.",
    ),
    ("Directional balance", "The score of translating into English minus that of translating from English."),
)


@dataclass(frozen=True)
class Figure:
    svg: str
    alternative: str
    caption: str


@dataclass(frozen=True)
class Examples:
    """Rejected rows by step, for a reader to judge."""

    examples: dict[str, list[Rejection]]


@dataclass(frozen=True)
class Section:
    """`blocks` in reading order."""

    title: str
    blocks: list[Table | Figure | Examples]

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Part:
    """All there is of one setting."""

    setting: Setting
    findings: list[tuple[str, str]]
    sections: list[Section]


@dataclass(frozen=True)
class View:
    """What templates print. `tables` by the name of their file, which is unique."""

    title: str
    parts: list[Part]
    glossary: tuple[tuple[str, str], ...]
    tables: dict[str, Table]


def build(study: list[Setting]) -> View:
    parts = [_part(setting) for setting in study]
    tables: dict[str, Table] = {}
    for number, part in enumerate(parts, 1):
        for section in part.sections:
            for i, block in enumerate(section.blocks):
                if isinstance(block, Table):
                    name = f"{block.name}_{number}" if len(parts) > 1 else block.name
                    while name in tables:  # of several runs in one setting
                        name += "_"
                    section.blocks[i] = tables[name] = replace(block, name=name)
    title = " and ".join(dict.fromkeys(run.results.title for part in parts for run in part.setting.runs))
    kinds = {setting.translates for setting in study}
    glossary = (GLOSSARY if False in kinds else ()) + (TRANSLATION_GLOSSARY if True in kinds else ())
    return View(title, parts, glossary, tables)


def _part(setting: Setting) -> Part:
    translating = setting.translates
    # Of a run whose own governance has no cell with a result, all that there is may be an ablation's.
    there = bool(setting.by_method())
    found = quality.main_quality(setting) if there and not translating else None
    few = None if found is None else shots.few_shot(setting, found)
    translated = translations.translations(setting) if there and translating else None
    varied = None if translating else robustness.robustness(setting)
    ablated = [] if translating else governance.ablations(setting)

    unlike = findings.unlike_finding(setting)
    said = [] if unlike is None else [unlike]
    said += [] if found is None else findings.quality_findings(found)
    said += [] if translated is None else findings.translation_findings(translated)
    optional = [
        None if few is None else findings.few_shot_finding(few),
        None if varied is None else findings.robustness_finding(varied),
        findings.governance_finding(ablated),
        findings.cost_finding(setting, None if found is None else findings.leader(found)),
        findings.cut_finding(setting),
    ]
    said += [one for one in optional if one is not None]

    frontier = None if found is None else cost.frontier_table(found)
    sections = [
        *([] if found is None else _quality_sections(found)),
        _section("Translation", [] if translated is None else _translation(translated)),
        _section("Robustness", _robustness(setting, varied)),
        _section("Governance of the training rows", _governance(setting, ablated)),
        _section("Footprint", [cost.footprint_table(setting)]),
        _section("Few-shot learning", [] if few is None else [_shots_figure(few), shots.shots_table(few)]),
        _section(
            "Cost and quality", [] if frontier is None or found is None else [_frontier(found), frontier]
        ),
        _section("Training", _training(setting)),
    ]
    return Part(setting, said, [one for one in sections if one.blocks])


Block = Table | Figure | Examples


def _section(title: str, blocks: Sequence[Block | None]) -> Section:
    return Section(title, [block for block in blocks if block is not None])


def _figure(svg: str | None, alternative: str, caption: str) -> Figure | None:
    return None if svg is None else Figure(svg, alternative, caption)


def _quality_sections(found: Quality) -> list[Section]:
    chart = figures.language_chart(found)
    diagrams = figures.reliability_diagrams(found)
    calibration: list[Block | None] = [
        _figure(
            diagrams,
            "Reliability diagrams, one per method: accuracy against confidence, and the share of rows at each.",
            "A calibrated model's bars end on the dashed diagonal; below it lies overconfidence. All languages' rows "
            "and all seeds together, which is what the ECE above each diagram refers to, too. Bottom: share of rows.",
        ),
        quality.language_table(found, "ece"),
    ]
    parity: list[Block | None] = [
        quality.parity_table(found),
        quality.group_table(found, "by_script"),
        quality.group_table(found, "by_resource_class"),
        quality.language_table(found, "accuracy"),
        _figure(
            chart,
            "Accuracy of each method in each language with standard errors; the numbers are in the table above.",
            "Mean over seeds. Bars: one binomial standard error of the language's rows. Dashed line: guessing.",
        ),
    ]
    return [
        Section("Main results", [quality.main_table(found)]),
        _section("Calibration", calibration),
        _section("Parity", parity),
    ]


def _translation(found: translations.Translations) -> list[Block | None]:
    tables: list[Block | None] = list(translations.direction_tables(found))
    return tables + [
        translations.balance_table(found, metric) for metric in ("bleu", "chrf", "bits_per_byte")
    ]


def _governance(setting: Setting, ablated: list[governance.Ablation]) -> list[Block | None]:
    blocks: list[Block | None] = []
    for one in ablated:
        blocks += [governance.ablation_table(one), governance.difference_table(one)]
    for run in setting.runs:
        blocks += governance.rejection_tables(run)
        summary = run.results.governance
        if summary is not None and any(summary.examples.values()):
            blocks.append(Examples(summary.examples))
    return blocks


def _robustness(setting: Setting, found: robustness.Robustness | None) -> list[Block | None]:
    blocks: list[Block | None] = []
    if found is not None:
        blocks += [
            robustness.recipe_table(found),
            robustness.place_table(found, "per_script"),
            robustness.place_table(found, "per_language"),
        ]
    if not setting.translates:
        blocks.append(robustness.romanised_table(setting))
    return blocks


def _shots_figure(found: shots.FewShot) -> Figure | None:
    drawn = figures.shots_figure(found)
    return _figure(
        drawn,
        "Accuracy against the number of training examples a language, one line for each method.",
        "Lines: mean over seeds; bands and dots: the seeds.",
    )


def _frontier(found: Quality) -> Figure | None:
    drawn = figures.frontier_figure(found)
    return _figure(
        drawn,
        "Accuracy against time per step and against peak memory, a point for each implementation of a method.",
        "Up and to the left is better. Hollow: PEFT's or Transformers' own implementation; filled: this package's. "
        "Ringed, where the dashed line turns: the front, of which no other is at least as accurate and at least as "
        "cheap. A point on the line elsewhere is as accurate as one that is cheaper.",
    )


def _training(setting: Setting) -> list[Block | None]:
    seeds = max((len(cells) for cells in setting.by_method().values()), default=0)
    which = "Mean over seeds, with their range as a band" if seeds > 1 else "One seed"
    curves, inside = figures.training_curves(setting), figures.inside_curves(setting)
    blocks: list[Block | None] = [
        _figure(
            curves,
            "Training loss and gradient norm of each method against the optimiser step.",
            f"{which}; with {setting.shown_shots}. The loss is the cross-entropy, without a regulariser.",
        ),
        _figure(
            inside,
            "Gradient norms by branch, and distance from orthogonality, of each method against the optimiser step.",
            f"{which}. Gradients of the head are left out. Q: the structured part of a layer.",
        ),
    ]
    for one in training.mixing(setting):
        drawn = figures.mixing_heat_map(setting, one)
        blocks.append(
            _figure(
                drawn,
                f"Heat map of the mixing coefficient of {setting.label(one.method)}, layers by training steps.",
                "λ weighs the low-rank update, 1 − λ the reflections. First seed.",
            )
        )
    return blocks
