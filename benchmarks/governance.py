"""Does data governance find the noise that was planted, leave clean text alone, and at what cost?

    python benchmarks/governance.py [--data FOLDER] [--only identification,clean,...] [--quick] [--output FILE]

Runs `hybrid-kernels govern` of this working tree on real text of 15 languages with planted noise whose truth is known
(governance_noise.py), and holds the result against the targets. Sections:

    identification  languages assigned to FLORES and XNLI hypotheses; each language left out of the wanted ones in turn
    duplicates      recall by Jaccard similarity and script, precision against similarities computed by the definition
    noise           recall of every kind of noise by language and by what named it; leaked evaluation rows
    translations    misaligned, copied and swapped translation pairs, and clean ones
    clean           false rejections of FLORES and NTREX by language and step
    scale           rows a second, seconds a row by step, peak memory, at growing numbers of rows
    engines         do both engines decide the same of every row?
    kill            a run that is killed again and again ends as one that is not

Exits with 1 if a target is missed. Results go to a JSON file, a section with the commit and the date it was made at;
the other sections of the file are kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from governance_cost import engines, kill, scale
from governance_decisions import clean, duplicates, identification, noise, pairs
from governance_noise import LANGUAGES, Corpus
from governance_runs import Bench, Json, Target
from rich.console import Console
from rich.table import Table

from hybrid_kernels._files import write_file
from hybrid_kernels.benchmarking import machine

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

SECTIONS: dict[str, Callable[[Bench], tuple[Json, list[Target]]]] = {
    "identification": identification,
    "duplicates": duplicates,
    "noise": noise,
    "translations": pairs,
    "clean": clean,
    "scale": scale,
    "engines": engines,
    "kill": kill,
}


def show(console: Console, name: str, result: Json, targets: Sequence[Target]) -> None:
    if name in ("noise", "translations"):
        table = Table("planted", "rows", "rejected", "worst", "named as", title=name)
        for kind, found in result.items():
            if kind == "clean_rejected":
                continue
            worst = min(found["by_language"], key=found["by_language"].__getitem__)
            reasons = ", ".join(f"{reason} {count}" for reason, count in list(found["reasons"].items())[:3])
            low = f"{worst} {found['by_language'][worst]:.1%}"
            table.add_row(kind, str(found["rows"]), f"{found['rejected']:.1%}", low, reasons)
        console.print(table)
    if name == "scale":
        table = Table("rows", "rows/s/core", "µs a row", "RSS GiB", "PSS GiB", "µs a row by step", title=name)
        for size, found in result["sizes"].items():
            steps = ", ".join(f"{step} {cost:.0f}" for step, cost in found["microseconds_per_row"].items())
            rate, cost = found["rows_per_second_per_core"], found["processor_microseconds_per_row"]
            memory = (f"{found[f'peak_{kind}_gib']:.2f}" for kind in ("rss", "pss"))
            table.add_row(f"{int(size):,}", f"{rate:,.0f}", f"{cost:.0f}", *memory, steps)
        console.print(table)
    for target in targets:
        outcome = "[green]met   [/]" if target.met else "[red]missed[/]"
        bound = f"{'≤' if target.at_most else '≥'} {target.bound:g}"
        console.print(f"{outcome} {target.name}: {target.value:.4g} ({bound})", highlight=False)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the text; %(default)s")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--wanted", default=",".join(LANGUAGES), help="languages, separated by commas")
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--work", type=Path, help="folder for inputs and results that is left; else a temporary one"
    )
    parser.add_argument("--output", type=Path, help="JSON file the sections are written to")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    options.wanted = options.wanted.split(",")
    for argument, names, known in (
        ("--only", options.only, list(SECTIONS)),
        ("--wanted", options.wanted, LANGUAGES),
    ):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"{argument}: {', '.join(unknown)} is none of {', '.join(known)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    corpus = Corpus(options.data, options.wanted)
    console = Console(width=150)
    written: Json = {"benchmark": "governance", "sections": {}}
    if options.output is not None and options.output.exists():
        written = json.loads(options.output.read_text(encoding="utf-8"))
    missed = False
    with tempfile.TemporaryDirectory(prefix="governance-benchmark-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(corpus, work, tuple(options.wanted), options.quick, options.seed, options.workers)
        for name in options.only:
            console.rule(name)
            result, targets = SECTIONS[name](bench)
            show(console, name, result, targets)
            missed |= not all(target.met for target in targets)
            written["sections"][name] = {
                "commit": machine.commit(),
                "date": datetime.date.today().isoformat(),
                "machine": machine.machine(),
                "versions": machine.versions(),
                "options": {"quick": options.quick, "seed": options.seed, "wanted": options.wanted},
                "targets": [{**target._asdict(), "met": target.met} for target in targets],
                "result": result,
            }
            if options.output is not None:
                write_file(options.output, json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
