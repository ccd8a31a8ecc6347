"""Real text with planted noise whose truth is known, for benchmarks/governance.py.

Sentences are those of FLORES, NTREX, XNLI, Tatoeba and TICO-19, in a folder laid out as the data's own downloads are.
Each is used once, for one kind of noise, so that a plant is a copy of nothing but what it is meant to be. All is drawn
from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from governance_spoiling import (
    BOILERPLATE,
    FILLER,
    FLORES,
    LANGUAGES,
    MARKUP,
    PERSONAL,
    ROMANISATION,
    UNSPACED,
    cut,
    in_script,
    mashed,
    misread,
    normal,
    romanised,
    same,
    scripts_in,
    similar,
)

Texts = dict[str, list[str]]


@dataclass(frozen=True)
class Row:
    """A row and the truth about it.

    Attributes:
        text: what is judged; with `other` the two sides of a translation.
        language: what it claims; `other_language` for `other`.
        kind: "clean", or the kind of noise.
        variant: how it was made.
        source: the language it was made from.
        partner: the row it is a copy of, by its id.
        similarity: Jaccard similarity to that.
    """

    id: str
    text: str
    language: str
    kind: str
    variant: str = ""
    source: str = ""
    partner: str | None = None
    similarity: float | None = None
    other: str | None = None
    other_language: str | None = None

    def record(self) -> dict[str, Any]:
        """What the product sees."""
        shown = ("id", "text", "language", "other", "other_language")
        return {name: value for name, value in asdict(self).items() if name in shown and value is not None}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


class Corpus:
    """The text under a folder.

    Attributes:
        flores, ntrex, hypotheses: language → lines; row-aligned over the languages.
        romanised: language → real romanised text.
        traditional: Chinese with characters that no Simplified text here has.
    """

    def __init__(self, folder: Path, languages: Sequence[str] = LANGUAGES) -> None:
        if not (folder / "xnli").is_dir():
            raise FileNotFoundError(
                f"no text at {folder}; name its folder with --data or HYBRID_KERNELS_DATA"
            )
        self.folder, self.languages = folder, tuple(languages)
        flores = folder / "flores200_dataset" / "dev"
        self.flores = {code: lines(flores / f"{FLORES[code]}.dev") for code in languages}
        self.ntrex = {code: lines(folder / "ntrex" / f"ntrex.{code}.txt") for code in languages}
        pairs = {code: lines(folder / "xnli" / f"dev-{code}.tsv") for code in languages}
        read = {code: [line.split("\t")[1] for line in rows] for code, rows in pairs.items()}
        # Some hypotheses are romanised, some Thai ones English: no clean text.
        self.hypotheses = {code: [t for t in texts if in_script(t, code)] for code, texts in read.items()}
        english = set(read.get("en", ()))
        self.romanised: Texts = {"ar": lines(flores / "arb_Latn.dev")} if "ar" in languages else {}
        for code in (code for code in ("hi", "ur") if code in read):
            self.romanised[code] = [t for t in read[code] if t not in english and scripts_in(t) == {"LATIN"}]
        simplified = set("".join((*self.ntrex["zh"], *self.flores["zh"]))) if "zh" in languages else set()
        # Many a short sentence is the same in both.
        traditional = lines(folder / "ntrex" / "ntrex.zh-TW.txt")
        self.traditional = [text for text in traditional if len(set(text) - simplified) > 1]

    def translations(self, language: str) -> dict[str, list[tuple[str, str]]]:
        """Corpus → (English, translation) pairs."""
        found = {"ntrex": list(zip(self.ntrex["en"], self.ntrex[language], strict=True))}
        for corpus, stem in (("tatoeba", "en-"), ("tico19", "test.en-")):
            paths = [self.folder / corpus / f"{stem}{language}.{code}" for code in ("en", language)]
            if all(path.exists() for path in paths):
                found[corpus] = list(zip(*map(lines, paths), strict=True))
        return found


class Pool:
    """Sentences of a language, each handed out once, none like another after normalisation."""

    def __init__(self, texts: Iterable[str], draw: random.Random, shortest: int = 8) -> None:
        self._texts = list({normal(t): t for t in texts if len(normal(t)) >= shortest}.values())
        draw.shuffle(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def take(self, count: int, wanted: Callable[[str], bool] = lambda text: True) -> list[str]:
        """So many of the wanted ones, fewer where no more are left."""
        chosen, rest = [], []
        for text in self._texts:
            (chosen if len(chosen) < count and wanted(text) else rest).append(text)
        self._texts = rest
        return chosen


def plant(corpus: Corpus, per_kind: int, seed: int) -> tuple[list[Row], list[Row]]:
    """(rows with every kind of noise in each language, shuffled; evaluation rows, some of which leaked into them)."""
    rows: list[Row] = []
    evaluation: list[Row] = []
    for language in corpus.languages:
        planter = _Planter(corpus, language, per_kind, seed)
        planter.foreign()
        planter.spoilt()
        planter.copies()
        evaluation += planter.leaked()
        planter.clean(5 * per_kind)
        rows += planter.rows
    random.Random(seed).shuffle(rows)
    return rows, evaluation


class _Planter:
    """Plants noise in the sentences of one language; `rows` are what was made."""

    def __init__(self, corpus: Corpus, language: str, per_kind: int, seed: int) -> None:
        self.corpus, self.language, self.per_kind = corpus, language, per_kind
        self.draw = random.Random(f"{seed}-{language}")
        self.pool = Pool([*corpus.ntrex[language], *corpus.hypotheses[language]], self.draw, shortest=20)
        self.rows: list[Row] = []

    def add(self, text: str, kind: str, **truth: Any) -> Row:
        truth.setdefault("source", self.language)
        self.rows.append(Row(f"{self.language}-{len(self.rows)}", text, self.language, kind, **truth))
        return self.rows[-1]

    def foreign(self) -> None:
        """Text that is not in the language it claims, or not in its script."""
        others = [code for code in self.corpus.languages if code != self.language]
        for i, code in enumerate(self.draw.choices(others, k=self.per_kind)):
            # Each of another line, whose translations nothing else uses.
            self.add(self.corpus.flores[code][i], "language swap", source=code)
        if self.language in ROMANISATION:
            self._spoil("romanised", lambda text: (romanised(text, self.language), "transliterated"))
        real = self.corpus.romanised.get(self.language, [])
        for text in self.draw.sample(real, min(self.per_kind, len(real))):
            self.add(text, "romanised", variant="real")
        if self.language == "zh":
            for text in self.draw.sample(self.corpus.traditional, self.per_kind):
                self.add(text, "wrong script", variant="Traditional")

    def spoilt(self) -> None:
        """What a rule on the characters of a text has to find."""
        draw, language = self.draw, self.language
        endings = {"phrase": BOILERPLATE[language], "filler": FILLER}

        def ended(text: str) -> tuple[str, str]:
            name = draw.choice(list(endings))
            return f"{text} {endings[name]}", name

        def marked(text: str) -> tuple[str, str]:
            name = draw.choice(list(MARKUP))
            return MARKUP[name](text), name

        def told(text: str) -> tuple[str, str]:
            name = draw.choice(list(PERSONAL))
            return f"{text} {draw.choice(PERSONAL[name])}", name

        long = 30 if language == "zh" else 60
        self._spoil("boilerplate", ended)
        self._spoil("markup", marked)
        self._spoil("mojibake", lambda text: misread(text, draw), lambda text: not text.isascii())
        self._spoil("truncated", lambda text: (cut(text, language, draw), ""), lambda text: len(text) > long)
        self._spoil("personal data", told)
        for _ in range(self.per_kind):
            text, how = mashed(language, draw)
            self.add(text, "keyboard mash", variant=how)

    def _spoil(
        self,
        kind: str,
        change: Callable[[str], tuple[str, str]],
        wanted: Callable[[str], bool] = bool,
    ) -> None:
        for text in self.pool.take(self.per_kind, wanted):
            spoilt, variant = change(text)
            if spoilt:
                self.add(spoilt, kind, variant=variant)

    def copies(self) -> None:
        """Originals, each with an exact or an edited copy."""
        for i, text in enumerate(self.pool.take(2 * self.per_kind)):
            original = self.add(text, "clean", variant="has a copy")
            self.copy(original, "exact duplicate" if i % 2 else "near-duplicate", exact=bool(i % 2))

    def copy(self, original: Row, kind: str, exact: bool) -> None:
        if exact:
            text, how = same(original.text, self.draw)
            self.add(text, kind, variant=how, partner=original.id, similarity=1.0)
        else:
            text, _, similarity = similar(original.text, self.draw)
            self.add(text, kind, partner=original.id, similarity=similarity)

    def leaked(self) -> list[Row]:
        """Evaluation rows, half of which have a copy among the rows."""
        # The first lines are what other languages' swaps are made of.
        texts = Pool(self.corpus.flores[self.language][self.per_kind :], self.draw, shortest=20).take(
            4 * self.per_kind
        )
        held_out = [
            Row(f"{self.language}-evaluation-{i}", t, self.language, "evaluation")
            for i, t in enumerate(texts)
        ]
        for i, row in enumerate(held_out[: 2 * self.per_kind]):
            self.copy(row, "leaked, exact" if i % 2 else "leaked, edited", exact=bool(i % 2))
        return held_out

    def clean(self, count: int) -> None:
        for text in self.pool.take(count):
            self.add(text, "clean")


def near_duplicates(corpus: Corpus, per_language: int, seed: int) -> list[Row]:
    """Sentences of all scripts, each with one copy, every second edited: shuffled."""
    rows: list[Row] = []
    for language in corpus.languages:
        planter = _Planter(corpus, language, per_language // 2, seed)
        planter.copies()
        rows += planter.rows
    random.Random(seed).shuffle(rows)
    return rows


def translations(corpus: Corpus, per_kind: int, seed: int) -> list[Row]:
    """English with each language: clean pairs of each corpus, misaligned ones, copied ones, and swapped languages."""
    rows: list[Row] = []
    for language in (code for code in corpus.languages if code != "en"):
        draw = random.Random(f"{seed}-translations-{language}")
        for name, pairs in corpus.translations(language).items():
            unlike = [(a, b) for a, b in pairs if normal(a) != normal(b) and in_script(b, language)]
            drawn = draw.sample(unlike, min(5 * per_kind, len(unlike)))
            quarter = len(drawn) // 5
            made = [Row("", a, "en", "clean", other=b) for a, b in drawn[3 * quarter :]]
            sides = drawn[:quarter]
            made += [
                Row("", a, "en", "misaligned", other=b)
                for (a, _), (_, b) in zip(sides, sides[1:] + sides[:1], strict=True)
            ]
            copied = drawn[quarter : 2 * quarter]
            made += [Row("", a, "en", "copied", other=a) for a, _ in copied]
            made += [Row("", b, "en", "sides swapped", other=a) for a, b in drawn[2 * quarter : 3 * quarter]]
            rows += [
                replace(
                    row, id=f"{language}-{name}-{i}", variant=name, source=language, other_language=language
                )
                for i, row in enumerate(made)
            ]
    random.Random(seed).shuffle(rows)
    return rows


def recombined(corpus: Corpus, count: int, seed: int) -> Iterator[Row]:
    """So many sentences, each of the first half of one and the second half of another one of its language.

    No two rows share both halves, and the halves are cut in the middle, so that rows are no near-duplicates of each
    other; every 50th is an exact copy of the one before in its language. As many as there are pairs of sentences.
    """
    halves: dict[str, list[tuple[str, str]]] = {}
    for language in corpus.languages:
        draw = random.Random(f"{seed}-scale-{language}")
        texts = Pool([*corpus.ntrex[language], *corpus.flores[language]], draw, shortest=20)
        halves[language] = [_halved(text, language) for text in texts.take(len(texts))]
    for i in range(count):
        language = corpus.languages[i % len(corpus.languages)]
        number, parts = i // len(corpus.languages), halves[language]
        copy = number % 50 == 49
        number -= copy
        # Over the shift of the second half goes the first half: no pair comes twice.
        first, shift = number % len(parts), 1 + number // len(parts)
        text = parts[first][0] + parts[(first + shift) % len(parts)][1]
        kind = "exact duplicate" if copy else "clean"
        yield Row(f"r{i}", text, language, kind, source=language)


def _halved(text: str, language: str) -> tuple[str, str]:
    middle = len(text) // 2
    if language not in UNSPACED:
        space = text.find(" ", middle)
        middle = space + 1 if space > 0 else middle
    return text[:middle], text[middle:]
