"""What governance decides of planted noise and of clean text: sections of benchmarks/governance.py.

Each returns its result, JSON-able, and its targets.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from governance_noise import Row, near_duplicates, plant, translations
from governance_runs import Bench, Json, Run, Target, write_rows
from governance_spoiling import SCRIPTS, jaccard

#: Jaccard similarities from which a copy is one, and the bins that recall is reported in.
THRESHOLD, BINS = 0.8, (0.0, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)
OFF = {"enabled": False}
CLAIMED = ("--language-column", "language")


def share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found) if found else float("nan")


def identification(bench: Bench) -> tuple[Json, list[Target]]:
    policy = bench.policy("identification", {"quality": OFF, "duplicates": OFF, "thresholds": OFF})
    corpora = {"flores": bench.corpus.flores, "hypotheses": bench.corpus.hypotheses}
    step = 5 if bench.quick else 1
    result: Json = {"accuracy": {}, "undetermined": {}, "confused": {}, "foreign": {}}
    targets = []
    for corpus, bound in (("flores", 0.995), ("hypotheses", 0.985)):
        rows = [
            Row(f"{code}-{i}", text, code, "clean")
            for code, texts in corpora[corpus].items()
            for i, text in enumerate(texts[::step])
        ]
        run = bench.run(f"identification-{corpus}", rows, *policy)
        found = [(row, run.verdicts[row.id]) for row in rows]
        right = [(row.language, verdict.languages == (row.language,)) for row, verdict in found]
        result["accuracy"][corpus] = {"all": share(hit for _, hit in right)} | {
            code: share(hit for language, hit in right if language == code) for code in bench.languages
        }
        result["undetermined"][corpus] = share(not verdict.languages for _, verdict in found)
        confused = Counter(
            (row.language, *verdict.languages)
            for row, verdict in found
            if verdict.languages != (row.language,)
        )
        result["confused"][corpus] = [[*names, count] for names, count in confused.most_common(12)]
        targets.append(Target(f"accuracy on {corpus}", result["accuracy"][corpus]["all"], bound))
    for code in bench.languages:
        others = [other for other in bench.languages if other != code]
        texts = [*bench.corpus.flores[code], *bench.corpus.ntrex[code]][:: 10 * step]
        rows = [Row(str(i), text, others[i % len(others)], "foreign") for i, text in enumerate(texts)]
        result["foreign"][code] = {}
        for mode, options in (("assigned", ()), ("claimed", CLAIMED)):
            run = bench.run(f"foreign-{code}", rows, *policy, *options, wanted=others)
            rejected = share(not run.verdicts[row.id].kept for row in rows)
            taken = Counter(
                "+".join(run.verdicts[row.id].languages) for row in rows if run.verdicts[row.id].kept
            )
            result["foreign"][code][mode] = {"rejected": rejected, "taken_for": dict(taken.most_common(4))}
    for mode in ("assigned", "claimed"):
        rejected = [result["foreign"][code][mode]["rejected"] for code in bench.languages]
        result["foreign"][f"all, {mode}"] = sum(rejected) / len(rejected)
        targets.append(Target(f"foreign sentences rejected, {mode}", result["foreign"][f"all, {mode}"], 0.95))
    return result, targets


def duplicates(bench: Bench) -> tuple[Json, list[Target]]:
    rows = near_duplicates(bench.corpus, 200 if bench.quick else 1200, bench.seed)
    policy = bench.policy("duplicates", {"quality": OFF, "thresholds": OFF, "language": OFF})
    run = bench.run("duplicates", rows, *CLAIMED, *policy)
    by_id = {row.id: row for row in rows}
    similarities = {
        row_id: jaccard(by_id[row_id].text, by_id[verdict.linked_to].text)
        for row_id, verdict in run.verdicts.items()
        if verdict.linked_to is not None
    }
    bins: dict[str, list[bool]] = {f"{low:g}–{high:g}": [] for low, high in itertools.pairwise(BINS)}
    scripts: dict[str, list[bool]] = defaultdict(list)
    variants: dict[str, list[bool]] = defaultdict(list)
    missed = []
    for row in rows:
        if row.partner is None or row.similarity is None:
            continue
        # A copy is dealt with where one of the two goes: which comes first is the input's order.
        hit = not (run.verdicts[row.id].kept and run.verdicts[row.partner].kept)
        if row.kind == "exact duplicate":
            variants[row.variant].append(hit)
        else:
            name = next(
                f"{low:g}–{high:g}" for low, high in itertools.pairwise(BINS)
                if row.similarity < high or high == 1.0
            )  # fmt: skip
            bins[name].append(hit)
            if row.similarity >= THRESHOLD:
                scripts[SCRIPTS[row.language]].append(hit)
                if not hit:
                    missed.append([row.similarity, row.text, by_id[row.partner].text])
    near = [hit for hits in scripts.values() for hit in hits]
    result = {
        "rows": len(rows),
        "recall_by_similarity": {
            name: {"pairs": len(hits), "found": share(hits)} for name, hits in bins.items()
        },
        "recall_from_0.8": {"all": share(near)}
        | {name: share(hits) for name, hits in sorted(scripts.items())},
        "recall_of_exact": {name: share(hits) for name, hits in sorted(variants.items())},
        "rejected": len(similarities),
        "precision": share(similarity >= THRESHOLD for similarity in similarities.values()),
        "missed": missed[:10],
        "wrong": [
            [similarity, by_id[name].text, by_id[str(run.verdicts[name].linked_to)].text]
            for name, similarity in similarities.items()
            if similarity < THRESHOLD
        ][:10],
    }
    exact = [hit for hits in variants.values() for hit in hits]
    return result, [
        Target("near-duplicates found from Jaccard 0.8", result["recall_from_0.8"]["all"], 0.98),
        Target("the same in the worst script", min(map(share, scripts.values())), 0.98),
        Target("exact duplicates found", share(exact), 1.0),
        Target("precision of duplicates", result["precision"], 1.0),
    ]


def noise(bench: Bench) -> tuple[Json, list[Target]]:
    rows, evaluation = plant(bench.corpus, 15 if bench.quick else 80, bench.seed)
    held_out = write_rows(bench.work / "evaluation.jsonl", (row.record() for row in evaluation))
    policy = bench.policy("noise", {"personal_data": {"enabled": True, "action": "reject"}})
    # Traditional characters are noise where Simplified ones are wanted.
    wanted = ["zh-Hans" if code == "zh" else code for code in bench.languages]
    shown = [
        {**row.record(), "language": "zh-Hans" if row.language == "zh" else row.language} for row in rows
    ]
    path = write_rows(bench.work / "noise.jsonl", shown)
    run = bench.run_files("noise", [path], *CLAIMED, *policy, "--evaluation", str(held_out), wanted=wanted)
    result = recall(rows, run)
    clean = [(row.language, run.verdicts[row.id]) for row in rows if row.kind == "clean"]
    result["clean_rejected"] = by_language(
        (code, not verdict.kept and _is_false(verdict)) for code, verdict in clean
    )
    return result, []


def _is_false(verdict: Any) -> bool:
    # One of a planted pair goes, the original where it comes later.
    return any(not reason.startswith(("duplicates: ", "leakage: ")) for reason in verdict.reasons)


def recall(rows: Sequence[Row], run: Run) -> Json:
    """Of each kind of noise: how much is rejected, by language, by variant, by which reasons; examples of the rest."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.kind != "clean":
            near = row.kind in ("near-duplicate", "leaked, edited")
            too_far = near and (row.similarity or 0.0) < THRESHOLD
            kinds[f"{row.kind}, below {THRESHOLD}" if too_far else row.kind].append(row)
    result: Json = {}
    for kind, planted in sorted(kinds.items()):
        verdicts = {row.id: run.verdicts[row.id] for row in planted}
        hits = {row.id: not verdicts[row.id].kept or _partner_goes(row, run) for row in planted}
        reasons = Counter(reason for verdict in verdicts.values() for reason in verdict.reasons)
        flags = Counter(flag for verdict in verdicts.values() for flag in verdict.flags if verdict.kept)
        result[kind] = {
            "rows": len(planted),
            "rejected": share(hits.values()),
            "by_language": by_language(
                (row.source if row.other else row.language, hits[row.id]) for row in planted
            ),
            "by_variant": by_language((row.variant, hits[row.id]) for row in planted),
            "reasons": dict(reasons.most_common(8)),
            "flags": dict(flags.most_common(4)),
            "missed": [
                [row.language, row.variant, row.text, row.other] for row in planted if not hits[row.id]
            ][:12],
        }
    return result


def _partner_goes(row: Row, run: Run) -> bool:
    """Of duplicates the first row stays, whichever that is."""
    return row.kind in ("near-duplicate", "exact duplicate") and not run.verdicts[str(row.partner)].kept


def by_language(found: Iterable[tuple[str, bool]]) -> dict[str, float]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for language, hit in found:
        hits[language].append(hit)
    return {language: share(values) for language, values in sorted(hits.items())}


def pairs(bench: Bench) -> tuple[Json, list[Target]]:
    rows = translations(bench.corpus, 10 if bench.quick else 60, bench.seed)
    run = bench.run(
        "translations", rows, "--text", "text,other", "--translation", "--language-column", "language,other_language"
    )  # fmt: skip
    result = recall(rows, run)
    clean = [row for row in rows if row.kind == "clean"]
    # Tatoeba has a sentence with several translations: copies, truly.
    false = {row.id: _is_false(run.verdicts[row.id]) for row in clean}
    reasons = Counter(reason for row in clean for reason in run.verdicts[row.id].reasons)
    result["clean_rejected"] = {
        "by_corpus": by_language((row.variant, false[row.id]) for row in clean),
        "by_language": by_language((row.source, false[row.id]) for row in clean),
        "reasons": dict(reasons),
        "examples": [
            [list(run.verdicts[row.id].reasons), row.text, row.other] for row in clean if false[row.id]
        ][:12],
    }
    return result, []


def clean(bench: Bench) -> tuple[Json, list[Target]]:
    step = 4 if bench.quick else 1
    corpora = {"flores": bench.corpus.flores, "ntrex": bench.corpus.ntrex}
    rows = [
        Row(f"{corpus}-{code}-{i}", text, code, "clean", variant=corpus)
        for corpus, texts in corpora.items()
        for code in bench.languages
        for i, text in enumerate(texts[code][::step])
    ]
    run = bench.run("clean", rows, *CLAIMED)
    by_id = {row.id: row for row in rows}
    true: set[str] = set()
    for row in rows:
        linked = run.verdicts[row.id].linked_to
        # The news repeats some sentences.
        if linked is not None and jaccard(row.text, by_id[linked].text) >= THRESHOLD:
            true.add(row.id)
    false = {row.id: not run.verdicts[row.id].kept and row.id not in true for row in rows}
    result: Json = {"true_duplicates": len(true), "rejected": {}, "by_step": {}, "flagged": {}}
    targets = []
    for corpus in corpora:
        chosen = [row for row in rows if row.variant == corpus]
        rejected = by_language((row.language, false[row.id]) for row in chosen)
        result["rejected"][corpus] = rejected
        for row in chosen:
            for reason in set(run.verdicts[row.id].reasons if false[row.id] else ()):
                counts = result["by_step"].setdefault(corpus, {}).setdefault(reason, Counter())
                counts[row.language] += 1
        worst = max(rejected, key=rejected.__getitem__)
        targets.append(
            Target(f"false rejections of {corpus}, worst ({worst})", rejected[worst], 0.01, at_most=True)
        )
        flagged = by_language((row.language, bool(run.verdicts[row.id].flags)) for row in chosen)
        result["flagged"][corpus] = flagged
    result["examples"] = [
        [row.variant, row.language, list(run.verdicts[row.id].reasons), row.text]
        for row in rows
        if false[row.id]
    ][:60]
    return result, targets
