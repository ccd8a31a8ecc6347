"""Personal data: e-mail addresses, phone numbers, IBANs and IP addresses, found in a text and masked.

What counts:

* *e-mail*: ``local@domain.tld``, in ASCII or any script. Where writing has no spaces, the ASCII letters beside the @
  are the address; one that is wholly in such a script takes the words it is joined to along.
* *phone*: what `phonenumbers` finds valid: international numbers, and national ones of the regions of the language that
  the text claims. National ones start with 0 or are grouped as their region does. No date, no ISBN, and no number with
  a decimal point or points between its thousands counts; "941 339 490" does in Spanish, where it may be either.
* *IBAN*: by country, length and check digits (`stdnum`).
* *IP*: IPv4 and IPv6 but for loopback and unspecified ones. Four numbers after "version" or "v" are no address, and
  four below ten, such as "1.2.3.4", are taken for the number of a section or a version.

Digits may be of any script.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Bounds, Columns, Features, Objection
from hybrid_kernels.governance.policy import GovernancePolicy

Kind: TypeAlias = Literal["email", "phone", "iban", "ip"]
Span: TypeAlias = tuple[int, int, Kind]

STEP = "personal data"
#: Fields of the policy that the features depend on.
MEASURED = ("personal_data.kinds",)

#: In the order in which they claim characters: digits of an address are no phone number.
KINDS: tuple[Kind, ...] = ("email", "iban", "ip", "phone")
_REASONS: dict[Kind, tuple[str, str]] = {
    "email": ("e-mail address", "e-mail addresses"),
    "phone": ("phone number", "phone numbers"),
    "iban": ("IBAN", "IBANs"),
    "ip": ("IP address", "IP addresses"),
}

#: Where a language's national phone numbers are looked for: its largest numbering plans, few because each costs a pass.
_REGIONS = {
    "ar": ("EG", "SA"),
    "bg": ("BG",),
    "cs": ("CZ",),
    "da": ("DK",),
    "de": ("DE", "AT"),
    "el": ("GR",),
    "en": ("US", "GB"),
    "es": ("ES", "MX"),
    "fa": ("IR",),
    "fi": ("FI",),
    "fr": ("FR",),
    "he": ("IL",),
    "hi": ("IN",),
    "hu": ("HU",),
    "id": ("ID",),
    "it": ("IT",),
    "ja": ("JP",),
    "ko": ("KR",),
    "nl": ("NL",),
    "pl": ("PL",),
    "pt": ("BR", "PT"),
    "ro": ("RO",),
    "ru": ("RU",),
    "sv": ("SE",),
    "sw": ("KE", "TZ"),
    "th": ("TH",),
    "tr": ("TR",),
    "uk": ("UA",),
    "ur": ("PK",),
    "vi": ("VN",),
    "zh": ("CN",),
    "zh-Hant": ("TW", "HK"),
}

_DIGIT = re.compile(r"\d")
_AT = ("@", "＠")
# Not what comes behind "ö" in a name.
_ASCII_LOCAL = re.compile(r"(?<![A-Za-z0-9À-ɏͰ-ӿḀ-ỿ\u0300-\u036f])[A-Za-z0-9][A-Za-z0-9._%+'-]*\Z")
# Combining marks are no \w, so letters are what is no space, punctuation or symbol of ASCII or of running text.
_LETTER = r"[^\s\x00-,/:-@\[-^`{-\x7f‘-‟«»。、，；：（）《》「」।؟،؛]"
_LOCAL = re.compile(rf"{_LETTER}+\Z")
_ASCII_DOMAIN = re.compile(
    # The name goes on in letters of another alphabet: not an ASCII one.
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})(?![A-Za-z0-9À-ɏͰ-ӿ])"
)
_LABEL = _LETTER.replace("[^", "[^.", 1)
_DOMAIN = re.compile(rf"{_LABEL}{{1,63}}(?:\.{_LABEL}{{1,63}})*\.(?:(?!\d){_LABEL}){{2,63}}")

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[  -]?[A-Za-z0-9]){11,30}(?![A-Za-z0-9])", re.ASCII)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4}|(?<=::))(?![\w:])",
    re.ASCII,
)
_VERSION = re.compile(
    r"(?:\bv|\bver|\bversion\w*|\bверси\w*|\bversión|\bsürüm\w*|έκδοση|版本?|الإصدار)[.:]?\s*\Z",
    re.IGNORECASE,
)
_MIN_IPV6_DIGITS = 4

_SEPARATORS = r"[\s().\-‐-―−/~]"
_PHONE = re.compile(rf"(?:\d{_SEPARATORS}{{0,4}}){{6}}\d")
# A text with more numbers that are none is a table, whose others are not looked at; each costs about 0.3 ms.
_MAX_TRIES = 5000
# With the year last, of the Thai calendar too, or from one year to another.
_DATE = re.compile(
    r"(?<!\d)(?:\d{1,2}[./ -]\d{1,2}[./ -](?:1\d|2[05])\d\d|(?:1[89]|20)\d\d[-‐-―/](?:1[89]|20)\d\d)(?!\d)"
)
# With a decimal point, or points between its thousands.
_QUANTITY = re.compile(r"\d+\.\d+|[1-9]\d{0,2}(?:\.\d{3})+")
_TRUNK = re.compile(r"\(?0\)?[ /-]?\d|\(")


def fields(columns: Columns, policy: GovernancePolicy) -> dict[str, pa.DataType]:
    """How many of each kind a text has: `email_0`, `phone_0`, `iban_0`, `ip_0`; 0 where there is no text."""
    return {
        f"{kind}_{i}": pa.int32() for i in range(len(columns.texts)) for kind in policy.personal_data.kinds
    }


def measure(batch: Batch, policy: GovernancePolicy) -> dict[str, NDArray[np.generic]]:
    """Counts of each kind; national phone numbers by the language a text claims."""
    kinds = policy.personal_data.kinds
    features: dict[str, NDArray[np.generic]] = {}
    for i, (texts, expected) in enumerate(zip(batch.texts, batch.expected, strict=True)):
        counts = {kind: np.zeros(len(batch), np.int32) for kind in kinds}
        for row, text in enumerate(texts):
            if text and _worth_a_look(text):
                for _, _, kind in find(text, kinds, expected[row]):
                    counts[kind][row] += 1
        features |= {f"{kind}_{i}": values for kind, values in counts.items()}
    return features


def objections(batch: Batch, features: Features, policy: GovernancePolicy, bounds: Bounds) -> list[Objection]:
    """One a kind and text column; they reject only where the action is `reject`."""
    section = policy.personal_data
    if not section.enabled:
        return []
    done = {"mask": ", masked", "reject": "", "flag": ""}[section.action]
    found = []
    for i, column in enumerate(batch.columns.texts):
        for kind in section.kinds:
            counts = features[f"{kind}_{i}"]
            rows = np.flatnonzero(counts).astype(np.int64)
            if rows.size:
                one, many = _REASONS[kind]
                detail = [f"{n} {one if n == 1 else many}{done}" for n in counts[rows].tolist()]
                score = counts[rows].astype(np.float64)
                rejects = section.action == "reject"
                found.append(Objection(STEP, one, column, rows, score, np.zeros(rows.size), detail, rejects))
    return found


def masked(text: str, policy: GovernancePolicy, language: str | None = None) -> str:
    """`text` with `[EMAIL]`, `[PHONE]`, `[IBAN]` or `[IP]` in place of each find; masking twice changes nothing more.

    Args:
        policy: its `personal_data.kinds` are masked, whatever its switch and its action.
        language: what the text claims to be in, as `measure` sees it; None: international phone numbers only.
    """
    kinds = policy.personal_data.kinds
    # What a mask leaves beside it may be a number of its own now; each pass removes some, so this ends.
    while _worth_a_look(text) and (spans := find(text, kinds, language)):
        parts, end = [], 0
        for start, stop, kind in spans:
            parts += [text[end:start], f"[{kind.upper()}]"]
            end = stop
        text = "".join([*parts, text[end:]])
    return text


def find(text: str, kinds: tuple[Kind, ...], language: str | None = None) -> list[Span]:
    """(start, end, kind) of each find, in order and apart.

    Args:
        language: national phone numbers of its regions count; None: international ones only.
    """
    spans: list[Span] = []
    taken = bytearray(len(text))
    for kind in KINDS:
        if kind not in kinds:
            continue
        finder = _phones(text, language) if kind == "phone" else _FINDERS[kind](text)
        for start, end in finder:
            if taken.find(1, start, end) < 0:
                taken[start:end] = bytes([1]) * (end - start)
                spans.append((start, end, kind))
    return sorted(spans)


def _worth_a_look(text: str) -> bool:
    """False, in about a microsecond, for a text without anything to find."""
    return "@" in text or "＠" in text or "::" in text or _DIGIT.search(text) is not None


def _emails(text: str) -> Iterator[tuple[int, int]]:
    for at in (i for sign in _AT if sign in text for i in _positions(text, sign)):
        before, after = text[max(0, at - 64) : at], text[at + 1 : at + 256]
        local = _ASCII_LOCAL.search(before) or _LOCAL.search(before)
        domain = _ASCII_DOMAIN.match(after) or _DOMAIN.match(after)
        if local and domain:
            yield at - len(local.group()), at + 1 + domain.end()


def _positions(text: str, sign: str) -> Iterator[int]:
    at = text.find(sign)
    while at >= 0:
        yield at
        at = text.find(sign, at + 1)


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        # Capitals that follow may have been taken along; a country has one length.
        for end in range(match.end(), match.start() + 14, -1):
            if text[end - 1].isalnum() and iban.is_valid(text[match.start() : end], check_country=False):
                yield match.start(), end
                break


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for pattern, sign in ((_IPV6, ":"), (_IPV4, ".")):
        if text.count(sign) < 2:
            continue
        for match in pattern.finditer(text):
            written = _ascii_digits(match.group())
            try:
                address = ipaddress.ip_address(written)
            except ValueError:
                continue
            if address.is_loopback or address.is_unspecified:
                continue
            if address.version == 4:
                if max(address.packed) < 10 or _VERSION.search(
                    text[max(0, match.start() - 20) : match.start()]
                ):
                    continue
            elif sum(c != ":" for c in written) < _MIN_IPV6_DIGITS or not _DIGIT.search(written):
                continue  # a::b is code
            yield match.start(), match.end()


_FINDERS = {"email": _emails, "iban": _ibans, "ip": _addresses}


def _phones(text: str, language: str | None) -> Iterator[tuple[int, int]]:
    if not _PHONE.search(text) or not _PHONE.search(_DATE.sub(" | ", text)):
        return
    from phonenumbers import Leniency, PhoneNumberMatcher

    seen: set[tuple[int, int]] = set()
    for region in regions(language) or (None,):
        for match in PhoneNumberMatcher(text, region, Leniency.VALID, _MAX_TRIES):
            span = match.start, match.end
            if span not in seen and _is_phone(match, text, region):
                seen.add(span)
                yield span


def _is_phone(match: Any, text: str, region: str | None) -> bool:
    """Whether a valid number is one in its place."""
    from phonenumbers import Leniency, PhoneNumberMatcher
    from stdnum import isbn

    written = _ascii_digits(match.raw_string)
    if written[0] in "+＋":
        return True
    if isbn.is_valid(written) or _DATE.search(written) or _QUANTITY.fullmatch(written):
        return False
    if _TRUNK.match(written):
        return True
    return PhoneNumberMatcher(match.raw_string, region, Leniency.STRICT_GROUPING).has_next()


@lru_cache(maxsize=256)
def regions(language: str | None) -> tuple[str, ...]:
    """Regions whose national phone numbers are looked for in a text of a language; none for an unknown one."""
    if language is None:
        return ()
    return _REGIONS.get(language) or _REGIONS.get(language.split("-")[0], ())


def _ascii_digits(text: str) -> str:
    return text if text.isascii() else _DIGIT.sub(lambda match: str(int(match.group())), text)
