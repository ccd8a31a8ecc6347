"""Keyboards: which keys bear which letters and marks, by the layouts of xkeyboard-config (MIT licence)."""

from __future__ import annotations

#: Layout → rows of keys from the digits' row down, without Shift, then the same rows with Shift where a script has no
#: case. A key without a letter or mark is "-".
LAYOUTS: dict[str, tuple[str, ...]] = {
    "us": (
        "-",
        "q w e r t y u i o p",
        "a s d f g h j k l",
        "z x c v b n m",
    ),
    "de": (
        "- - - - - - - - - - ß",
        "q w e r t z u i o p ü",
        "a s d f g h j k l ö ä",
        "y x c v b n m",
    ),
    "es": (
        "-",
        "q w e r t y u i o p",
        "a s d f g h j k l ñ",
        "z x c v b n m",
    ),
    "fr": (
        "- é - - - - è - ç à",
        "a z e r t y u i o p",
        "q s d f g h j k l m ù",
        "w x c v b n",
    ),
    "it": (
        "- - - - - - - - - - - ì",
        "q w e r t y u i o p è",
        "a s d f g h j k l ò à",
        "z x c v b n m",
    ),
    "pt": (
        "-",
        "q w e r t y u i o p",
        "a s d f g h j k l ç",
        "z x c v b n m",
    ),
    "tr": (
        "-",
        "q w e r t y u ı o p ğ ü",
        "a s d f g h j k l ş i",
        "z x c v b n m ö ç",
    ),
    "gr": (
        "-",
        "- ς ε ρ τ υ θ ι ο π",
        "α σ δ φ γ η ξ κ λ",
        "ζ χ ψ ω β ν μ",
    ),
    "bg": (
        "-",
        "- у е и ш щ к с д з ц",
        "ь я а о ж г т н в м ч",
        "ю й ъ э ф х п р л б",
    ),
    "ru": (
        "-",
        "й ц у к е н г ш щ з х ъ",
        "ф ы в а п р о л д ж э",
        "я ч с м и т ь б ю",
    ),
    "ua": (
        "-",
        "й ц у к е н г ш щ з х ї",
        "ф і в а п р о л д ж є",
        "я ч с м и т ь б ю",
    ),
    "ara": (
        "-",
        "ض ص ث ق ف غ ع ه خ ح ج د",
        "ش س ي ب ل ا ت ن م ك ط",
        "ئ ء ؤ ر - ى ة و ز ظ",
        "-",
        "- - - - - إ",
        "- - - - - أ",
        "- - - - - آ",
    ),
    "ir": (
        "-",
        "ض ص ث ق ف غ ع ه خ ح ج چ",
        "ش س ی ب ل ا ت ن م ک گ",
        "ظ ط ز ر ذ د پ و",
        "-",
        "-",
        "ؤ ئ ي إ أ آ ة",
        "ك - ژ - - - ء",
    ),
    "pk": (
        "-",
        "ق و ع ر ت ے ء ی ہ پ",
        "ا س د ف گ ح ج ک ل",
        "ز ش چ ط ب ن م",
        "-",
        "- ؤ - ڑ ٹ - ئ - ۃ",
        "آ ص ڈ - غ ھ ض خ",
        "ذ ژ ث ظ - ں",
    ),
    "il": (
        "-",
        "- - ק ר א ט ו ן ם פ",
        "ש ד ג כ ע י ח ל ך ף",
        "ז ס ב ה נ מ צ ת ץ",
    ),
    "in": (
        "- - - - - - - - - - - ृ",
        "ौ ै ा ी ू ब ह ग द ज ड ़",
        "ो े ् ि ु प र क त च ट",
        "ॆ ं म न व ल स - - य",
        "ऍ ॅ - - - - - - - - ः ऋ",
        "औ ऐ आ ई ऊ भ ङ घ ध झ ढ ञ",
        "ओ ए अ इ उ फ ऱ ख थ छ ठ",
        "ऎ ँ ण ऩ ऴ ळ श ष - य़",
    ),
    "th": (
        "ๅ - - ภ ถ ุ ึ ค ต จ ข ช",
        "- ไ - พ ะ ั ี ร น ย บ ล",
        "ฟ ห ก ด เ ้ ่ า ส ว ง",
        "ผ ป แ อ ิ ื ท ม ใ ฝ",
        "- - - - - ู",
        "- - ฎ ฑ ธ ํ ๊ ณ ฯ ญ ฐ",
        "ฤ ฆ ฏ โ ฌ ็ ๋ ษ ศ ซ",
        "- - ฉ ฮ ฺ ์ - ฒ ฬ ฦ",
    ),
}

#: Language → layout. Vietnamese is typed on the US layout (Telex), so are Swahili, Dutch, Polish, Indonesian.
LAYOUT_OF = {
    "ar": "ara",
    "bg": "bg",
    "de": "de",
    "el": "gr",
    "en": "us",
    "es": "es",
    "fa": "ir",
    "fr": "fr",
    "he": "il",
    "hi": "in",
    "id": "us",
    "it": "it",
    "mr": "in",
    "nl": "us",
    "pl": "us",
    "pt": "pt",
    "ru": "ru",
    "sw": "us",
    "th": "th",
    "tr": "tr",
    "uk": "ua",
    "ur": "pk",
    "vi": "us",
}

#: How far each row is set off to the right, in keys (ISO and ANSI keyboards alike).
OFFSETS = (0.0, 0.5, 0.75, 1.25)
#: Keys whose centres are no further apart, in keys, are neighbours: of S they are A, D, W, E, Z, X.
REACH = 1.2
