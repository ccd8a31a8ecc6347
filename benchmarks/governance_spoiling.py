"""Ways to spoil a sentence, and the similarity of what comes out, for benchmarks/governance_noise.py."""

from __future__ import annotations

import random
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache

FLORES = {
    "ar": "arb_Arab",
    "bg": "bul_Cyrl",
    "de": "deu_Latn",
    "el": "ell_Grek",
    "en": "eng_Latn",
    "es": "spa_Latn",
    "fr": "fra_Latn",
    "hi": "hin_Deva",
    "ru": "rus_Cyrl",
    "sw": "swh_Latn",
    "th": "tha_Thai",
    "tr": "tur_Latn",
    "ur": "urd_Arab",
    "vi": "vie_Latn",
    "zh": "zho_Hans",
}
LANGUAGES = tuple(FLORES)
SCRIPTS = {
    language: {
        "Arab": "ARABIC", "Cyrl": "CYRILLIC", "Deva": "DEVANAGARI", "Grek": "GREEK", "Hans": "CJK", "Latn": "LATIN",
        "Thai": "THAI",
    }[code[-4:]]
    for language, code in FLORES.items()
}  # fmt: skip
#: Write no spaces between words.
UNSPACED = ("th", "zh")


@lru_cache(maxsize=1 << 16)
def script(character: str) -> str:
    return unicodedata.name(character, "?").split()[0].split("-")[0] if character.isalpha() else ""


def written_in(text: str) -> str:
    """The script of most letters; "" where there are none."""
    counts: dict[str, int] = defaultdict(int)
    for character in text:
        counts[script(character)] += 1
    counts.pop("", None)
    return max(counts, key=counts.__getitem__, default="")


def scripts_in(text: str) -> set[str]:
    """The scripts of its letters."""
    return {script(character) for character in text} - {""}


def in_script(text: str, language: str) -> bool:
    return written_in(text) == SCRIPTS[language]


def normal(text: str) -> str:
    """As the product says it compares texts: NFKC, case-folded, without punctuation, white space and controls."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")


def jaccard(a: str, b: str) -> float:
    """Of the sets of character trigrams, or bigrams where ideographs dominate: by its definition, whatever it costs."""
    sets = []
    for text in (normal(a), normal(b)):
        size = 2 if 2 * sum(script(c) == "CJK" for c in text) > len(text) else 3
        sets.append({text[i : i + size] for i in range(max(1, len(text) - size + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(text: str, share: float, draw: random.Random) -> str:
    """A share of its characters, one at least, replaced, removed or doubled by ones of the text itself."""
    letters = [c for c in text if c.isalpha()] or list(text)
    characters = list(text)
    for place in draw.sample(range(len(text)), max(1, round(share * len(text)))):
        characters[place] = draw.choice(("", draw.choice(letters), characters[place] + draw.choice(letters)))
    return "".join(characters)


def similar(text: str, draw: random.Random) -> tuple[str, float, float]:
    """(a copy with 1–10 % of the characters edited, that share, the Jaccard similarity)."""
    share = draw.uniform(0.01, 0.1)
    copy = edited(text, share, draw)
    return copy, share, jaccard(text, copy)


def same(text: str, draw: random.Random) -> tuple[str, str]:
    """(a copy that is equal after normalisation, how it was made)."""
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    words = text.split(" ")
    changes = {
        "verbatim": text,
        "case": text.upper(),
        "punctuation": f"«{text.rstrip('.。।۔')}» !",
        "width": wide,
        "spaces": "  ".join(words) + "\u00a0",
    }
    names = [
        name
        for name, copy in changes.items()
        if normal(copy) == normal(text) and (name == "verbatim" or copy != text)
    ]
    name = draw.choice(names)
    return changes[name], name


def _table(pairs: str) -> dict[str, str]:
    """Letters, each followed by what stands for it; - is nothing."""
    return {pair[0]: pair[1:].strip("-") for pair in pairs.split()}


_ARABIC = _table(
    "اa بb تt ثth جj حh خkh دd ذdh رr زz سs شsh صs ضd طt ظz عa غgh فf قq كk لl مm نn هh وw يy ىa ةa "
    "ءa أa إi آaa ؤo ئe پp چch ڈd ڑr ژzh کk گg ںn ہh ھh ےe ٹt ۓe ۂh یy ،, ؛; ؟? ۔."
)
_CYRILLIC = _table(
    "аa бb вv гg дd еe ёyo жzh зz иi йy кk лl мm нn оo пp рr сs тt уu фf хkh цts чch шsh щshch ъ- ыy "
    "ь- эe юyu яya"
)
_DEVANAGARI = _table(
    "ँn ंn ःh अa आaa इi ईee उu ऊoo ऋri एe ऐai ओo औau ाaa िi ीee ुu ूoo ृri ेe ैai ोo ौau कk खkh गg "
    "घgh ङng चch छchh जj झjh ञny टt ठth डd ढdh णn तt थth दd धdh नn ऩn पp फph बb भbh मm यy रr ऱr लl ळl "
    "ऴl वv शsh षsh सs हh ।. ़- ्-"
)
_GREEK = _table("αa βv γg δd εe ζz ηi θth ιi κk λl μm νn ξx οo πp ρr σs τt υy φf χch ψps ωo ςs")
#: Letter → Latin letters, as people without their keyboard type.
ROMANISATION: Mapping[str, Mapping[str, str]] = {
    "ar": _ARABIC, "bg": _CYRILLIC, "el": _GREEK, "hi": _DEVANAGARI, "ru": _CYRILLIC, "ur": _ARABIC,
}  # fmt: skip
_VOWEL_SIGNS = frozenset("ािीुूृेैोौ़्")


def romanised(text: str, language: str) -> str:
    """In Latin letters, letter by letter."""
    table = ROMANISATION[language]
    parts: list[str] = []
    characters = text.lower() if language in ("bg", "el", "ru") else text
    for character, following in zip(characters, [*characters[1:], " "], strict=True):
        bare = unicodedata.normalize("NFD", character)[0] if language == "el" else character
        if bare in table:
            parts.append(table[bare])
            # A Devanagari consonant carries an a, but for the last of a word.
            if "क" <= bare <= "ह" and following not in _VOWEL_SIGNS and following.isalpha():
                parts.append("a")
        elif not unicodedata.combining(character):
            parts.append(character)
    return "".join(parts)


#: One phrase of the web a language, written for this benchmark.
BOILERPLATE = {
    "ar": "نستخدم ملفات تعريف الارتباط لتحسين تجربتك. جميع الحقوق محفوظة © 2021",
    "bg": "Този сайт използва бисквитки. Всички права запазени © 2021",
    "de": "Wir verwenden Cookies, um Ihnen das beste Erlebnis zu bieten. Alle Rechte vorbehalten.",
    "el": "Χρησιμοποιούμε cookies για την καλύτερη εμπειρία σας. Με επιφύλαξη παντός δικαιώματος.",
    "en": "We use cookies to give you the best experience. Click here to subscribe. All rights reserved.",
    "es": "Utilizamos cookies para mejorar su experiencia. Todos los derechos reservados.",
    "fr": "Nous utilisons des cookies pour améliorer votre expérience. Tous droits réservés.",
    "hi": "यह वेबसाइट कुकी का उपयोग करती है। सर्वाधिकार सुरक्षित © 2021",
    "ru": "Мы используем файлы cookie. Все права защищены © 2021",
    "sw": "Tunatumia vidakuzi kuboresha huduma zetu. Haki zote zimehifadhiwa © 2021",
    "th": "เว็บไซต์นี้ใช้คุกกี้เพื่อประสบการณ์ที่ดีที่สุด สงวนลิขสิทธิ์ © 2021",
    "tr": "Size en iyi deneyimi sunmak için çerez kullanıyoruz. Tüm hakları saklıdır.",
    "ur": "ہم آپ کے تجربے کو بہتر بنانے کے لیے کوکیز استعمال کرتے ہیں۔ جملہ حقوق محفوظ ہیں © 2021",
    "vi": "Chúng tôi sử dụng cookie để cải thiện trải nghiệm của bạn. Bảo lưu mọi quyền.",
    "zh": "我们使用 Cookie 来改善您的体验。版权所有，保留所有权利 © 2021",
}
FILLER = "Lorem ipsum dolor sit amet, consectetur adipiscing elit."
MARKUP: dict[str, Callable[[str], str]] = {
    "html": lambda t: f'<div class="entry"><p>{t}</p></div>',
    "link": lambda t: f'{t} <a href="https://example.com/?id=7">»</a>',
    "entities": lambda t: f"&nbsp;&lt;{t}&gt;&#8217;",
    "script": lambda t: f"{t} function(){{ var a = 1; document.write(a); }}",
    "wiki": lambda t: f"{{{{cite web|url=x}}}} [[{t}]] '''",
    "bbcode": lambda t: f"[quote][b]{t}[/b][/quote]",
}
_KEYS = {
    "ARABIC": ("ضصثقفغعهخحجد", "شسيبلاتنمكط", "ئءؤرلاىةوزظ"),
    "CJK": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "CYRILLIC": ("йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"),
    "DEVANAGARI": ("ौैाीूबहगदजड", "ोे्िुपरकतचट", "ॆंमनवलस"),
    "GREEK": ("ςερτυθιοπ", "ασδφγηξκλ", "ζχψωβνμ"),
    "LATIN": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "THAI": ("ๆไำพะัีรนยบล", "ฟหกดเ้่าสวง", "ผปแอิืทมใฝ"),
}  # fmt: skip
PERSONAL = {
    "email": ("maria.kim@example.com", "j_smith+news@mail.example.co.uk"),
    "phone": ("+44 20 7946 0958", "+49 (0)30 901820", "+1 702-369-1540", "+91 98182 74592"),
    "iban": ("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"),
    "ip": ("192.168.10.17", "2001:db8::ff00:42:8329"),
}


def mashed(language: str, draw: random.Random) -> tuple[str, str]:
    """(typing that is no language, how it was made)."""
    rows = _KEYS[SCRIPTS[language]]
    length = draw.randint(20, 60)
    if draw.random() < 0.5:
        walk = "".join(draw.choice((row, row[::-1]))[: draw.randint(5, 9)] for row in draw.choices(rows, k=8))
        return walk[:length], "walks"
    letters = "".join(draw.choices("".join(rows), k=length))
    return " ".join(letters[i : i + 7] for i in range(0, length, 7)), "random keys"


def misread(text: str, draw: random.Random) -> tuple[str, str]:
    """(UTF-8 read as another encoding, which); "" where that changes nothing."""
    encoding = draw.choice(("latin-1", "cp1252"))
    # Bytes that cp1252 leaves undefined are read as browsers do.
    data = text.encode("utf-8")
    wrong = "".join(bytes([b]).decode(encoding, "ignore") or bytes([b]).decode("latin-1") for b in data)
    return ("", encoding) if wrong == text else (wrong, encoding)


def cut(text: str, language: str, draw: random.Random) -> str:
    """Cut off within a word, 30 to 80 % in; in a script without spaces within the sentence."""
    place = int(len(text) * draw.uniform(0.3, 0.8))
    while (
        language not in UNSPACED and place > 2 and not (text[place - 1].isalpha() and text[place].isalpha())
    ):
        place -= 1
    return text[:place]
