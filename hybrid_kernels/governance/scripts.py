"""Scripts: what a text is written in, what a language is written in, and language tags that name both, `zh-Hant`.

Tags are the part of BCP 47 that a data set needs: a language, and where it is wanted a script (ISO 15924).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.identify import known_languages

#: ISO 15924 → the first word of the names that Unicode gives its letters.
SCRIPTS = {
    "Arab": "ARABIC",
    "Armn": "ARMENIAN",
    "Beng": "BENGALI",
    "Cyrl": "CYRILLIC",
    "Deva": "DEVANAGARI",
    "Ethi": "ETHIOPIC",
    "Geor": "GEORGIAN",
    "Grek": "GREEK",
    "Gujr": "GUJARATI",
    "Guru": "GURMUKHI",
    "Hang": "HANGUL",
    "Hani": "CJK",
    "Hebr": "HEBREW",
    "Hira": "HIRAGANA",
    "Kana": "KATAKANA",
    "Khmr": "KHMER",
    "Knda": "KANNADA",
    "Laoo": "LAO",
    "Latn": "LATIN",
    "Mlym": "MALAYALAM",
    "Mymr": "MYANMAR",
    "Orya": "ORIYA",
    "Sinh": "SINHALA",
    "Taml": "TAMIL",
    "Telu": "TELUGU",
    "Thai": "THAI",
    "Tibt": "TIBETAN",
}
_NAMES = {name: code for code, name in SCRIPTS.items()}
#: Chinese comes in two forms of one script.
CHINESE_VARIANTS = {"Hans": "Simplified", "Hant": "Traditional"}

# Scripts of the languages that are not written in Latin letters alone.
_WRITTEN_IN = {
    language: frozenset(scripts.split())
    for scripts, languages in {
        "Arab": "ar fa ps sdh ug ur",
        "Arab Latn": "ku",
        "Armn": "hy",
        "Beng": "as bn",
        "Hani": "zh",
        "Hani Hira Kana": "ja",
        "Cyrl": "ba be bg kk ky mk mn ru tg tt uk",
        "Cyrl Latn": "az bs crh sr tk uz",
        "Deva": "gom hi mr ne sa",
        "Ethi": "am",
        "Geor": "ka",
        "Grek": "el",
        "Gujr": "gu",
        "Guru Arab": "pa",
        "Hang Hani": "ko",
        "Hebr": "he",
        "Knda": "kn",
        "Khmr": "km",
        "Laoo": "lo",
        "Mlym": "ml",
        "Mymr": "my",
        "Orya": "or",
        "Sinh": "si",
        "Taml": "ta",
        "Telu": "te",
        "Thai": "th",
        "Tibt": "dz",
    }.items()
    for language in languages.split()
}
_LATIN = frozenset({"Latn"})

# What else data sets call the languages of the model: ISO 639-3 (the codes of FLORES-200 among it), retired codes.
_CODES = """
    af=afr am=amh an=arg ar=ara,arb as=asm az=aze,azj ba=bak be=bel bg=bul bn=ben br=bre bs=bos ca=cat
    cs=ces,cze cy=cym,wel da=dan de=deu,ger dz=dzo el=ell,gre en=eng eo=epo es=spa et=est,ekk eu=eus,baq
    fa=fas,per,pes fi=fin fo=fao fr=fra,fre fy=fry ga=gle gd=gla gl=glg gu=guj gug=grn,gn ha=hau he=heb,iw
    hi=hin hr=hrv ht=hat hu=hun hy=hye,arm id=ind,in ig=ibo is=isl,ice it=ita ja=jpn jv=jav ka=kat,geo kik=ki
    kk=kaz km=khm kn=kan ko=kor ku=kur,kmr ky=kir la=lat lb=ltz lg=lug ln=lin lo=lao lt=lit lv=lav,lvs
    mg=mlg,plt mk=mkd,mac ml=mal mn=mon,khk mr=mar ms=msa,may,zsm mt=mlt my=mya,bur ne=nep,npi nl=nld,dut
    nn=nno no=nor,nob,nb oc=oci om=orm,gaz or=ori,ory pa=pan pl=pol ps=pus,pbt pt=por qu=que,quy ro=ron,rum
    ru=rus rw=kin sa=san se=sme si=sin sk=slk,slo sl=slv sn=sna so=som sq=sqi,alb,als sr=srp st=sot sv=swe
    sw=swa,swh ta=tam te=tel tg=tgk th=tha tk=tuk tl=tgl,fil tr=tur tt=tat ug=uig uk=ukr ur=urd uz=uzb,uzn
    vi=vie vo=vol wa=wln xh=xho yo=yor zh=zho,chi,cmn zu=zul
"""
_OTHER_CODES = {
    other: language
    for language, others in (item.split("=") for item in _CODES.split())
    for other in others.split(",")
}
_CHINESE_REGIONS = {"cn": "Hans", "sg": "Hans", "my": "Hans", "tw": "Hant", "hk": "Hant", "mo": "Hant"}

_TAG = re.compile(r"([a-z]{2,3})(?:-([a-z]{4}))?(?:-([a-z]{2}|[0-9]{3}))?", re.IGNORECASE)


@dataclass(frozen=True)
class Tag:
    """A language, and the script if one is named; `str()` gives it as `zh-Hant`."""

    language: str
    script: str | None = None

    def __str__(self) -> str:
        return f"{self.language}-{self.script}" if self.script else self.language

    @property
    def scripts(self) -> frozenset[str]:
        """What a text of it may be written in; a variant of Chinese is a script here."""
        if self.script:
            return frozenset({self.script})
        return scripts_of(self.language)

    @property
    def is_romanised(self) -> bool:
        """In Latin letters although the language is not written in them: the model has not seen it so."""
        return self.script == "Latn" and "Latn" not in scripts_of(self.language)

    @property
    def letters(self) -> frozenset[str]:
        """The names that Unicode gives these scripts."""
        return frozenset(SCRIPTS["Hani" if script in CHINESE_VARIANTS else script] for script in self.scripts)

    def accepts(self, other: Tag) -> bool:
        """Whether every text that the other allows is allowed."""
        if self.language != other.language:
            return False
        variants = "Hani" in self.scripts and other.script in CHINESE_VARIANTS
        return variants or other.scripts <= self.scripts


def scripts_of(language: str) -> frozenset[str]:
    """The scripts (ISO 15924) that a language is written in."""
    return _WRITTEN_IN.get(language, _LATIN)


@lru_cache(maxsize=4096)
def read_tag(text: str) -> Tag | None:
    """The tag that a data set's name for a language means, `EN`, `en_US`, `eng`, `zho_Hans`, `zh-TW`; None: none."""
    match = _TAG.fullmatch(text.strip().replace("_", "-"))
    if not match:
        return None
    language, script, region = (part and part.lower() for part in match.groups())
    language = _OTHER_CODES.get(language, language)
    if language not in known_languages():
        return None
    script = script and script.capitalize()
    if language == "zh" and (script in (None, "Hani")):
        script = _CHINESE_REGIONS.get(region or "")
    elif script in ("Jpan", "Kore", "Hrkt"):
        script = None
    if script and script not in allowed_scripts(language):
        return None
    # The only script of its language says nothing.
    return Tag(language, None if scripts_of(language) == {script} else script)


def allowed_scripts(language: str) -> frozenset[str]:
    """What a tag of the language may name: its scripts, the variants of Chinese, and Latin letters."""
    variants = CHINESE_VARIANTS if language == "zh" else ()
    return scripts_of(language) | frozenset(variants) | _LATIN


def in_words(scripts: frozenset[str]) -> str:
    """For a reader: "Simplified", "Cyrillic or Latin"."""
    names = {"Hani": "Han"} | CHINESE_VARIANTS
    return " or ".join(sorted(names.get(script) or SCRIPTS[script].capitalize() for script in scripts))


def name_in_words(letters: str) -> str:
    """The same of a script by Unicode's name."""
    return in_words(frozenset({_NAMES[letters]})) if letters in _NAMES else letters.capitalize()


@lru_cache(maxsize=1)
def _names() -> list[str]:
    """Names of scripts by the number `_script_numbers` gives them; 0 is no letter."""
    return [""]


@lru_cache(maxsize=1)
def _script_numbers() -> NDArray[np.uint8]:
    """By code point; 255 where it was not asked for yet. Grows as characters turn up: asking for all takes a second."""
    return np.full(0x110000, 255, np.uint8)


def _script_number(code_point: int) -> int:
    # Compatibility forms (full width, bold) are what they mean.
    character = unicodedata.normalize("NFKC", chr(code_point))[:1]
    if not character.isalpha():
        return 0
    name = unicodedata.name(character, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]
    # Far more scripts than a data set has; those beyond count as one.
    name = name if name in _names() or len(_names()) < 250 else "OTHER"
    if name not in _names():
        _names().append(name)
    return _names().index(name)


@lru_cache(maxsize=1)
def _variant_numbers() -> NDArray[np.uint8]:
    """By code point: 1 only in Simplified Chinese, 2 only in Traditional, by CC-CEDICT (`zhon`)."""
    from zhon import cedict

    numbers = np.zeros(0x110000, np.uint8)
    simplified, traditional = set(cedict.simplified), set(cedict.traditional)
    numbers[[ord(character) for character in simplified - traditional]] = 1
    numbers[[ord(character) for character in traditional - simplified]] = 2
    return numbers


@dataclass(frozen=True)
class Letters:
    """Letters of texts.

    Attributes:
        counts: by text and script.
        names: the scripts, as Unicode names them.
        simplified, traditional: characters of each text that only this variant of Chinese has.
    """

    counts: NDArray[np.int64]
    names: tuple[str, ...]
    simplified: NDArray[np.int64]
    traditional: NDArray[np.int64]

    @property
    def total(self) -> NDArray[np.int64]:
        return self.counts.sum(1)

    def dominant(self) -> list[str | None]:
        """The script most letters of each text are in; None without letters."""
        if not self.names:
            return [None] * len(self.counts)
        return [
            self.names[i] if total else None
            for i, total in zip(self.counts.argmax(1).tolist(), self.total.tolist(), strict=True)
        ]

    def of(self, scripts: frozenset[str]) -> NDArray[np.int64]:
        """Letters of each text in these scripts (Unicode's names)."""
        return self.counts[:, [name in scripts for name in self.names]].sum(1)


def letters(texts: Sequence[str]) -> Letters:
    """Counts the letters of texts by script."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    code_points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    owner = np.repeat(np.arange(len(texts)), sizes)
    table = _script_numbers()
    numbers = table[code_points]
    if len(new := np.unique(code_points[numbers == 255])):
        table[new] = [_script_number(point) for point in new.tolist()]
        numbers = table[code_points]
    # Sorted by name: numbers depend on what this process has read before, and ties are broken by position.
    names = sorted((_names()[i], i) for i in np.flatnonzero(np.bincount(numbers, minlength=1)).tolist() if i)
    position = np.zeros(256, np.int64)
    position[[i for _, i in names]] = np.arange(1, len(names) + 1)
    width = len(names) + 1
    counts = np.bincount(owner * width + position[numbers], minlength=len(texts) * width).reshape(-1, width)
    variants = np.zeros((len(texts), 3), np.int64)
    if any(name == "CJK" for name, _ in names):
        variant = _variant_numbers()[code_points]
        hits = variant > 0
        variants = np.bincount(owner[hits] * 3 + variant[hits], minlength=len(texts) * 3).reshape(-1, 3)
    return Letters(counts[:, 1:], tuple(name for name, _ in names), variants[:, 1], variants[:, 2])
