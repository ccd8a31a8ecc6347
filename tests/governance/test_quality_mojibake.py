"""Text that went through a wrong encoding is seen in any script, and undone where that can be."""

import random
import time

import pytest

from hybrid_kernels.governance import mojibake
from hybrid_kernels.governance.characters import CodePoints
from hybrid_kernels.governance.repair import repaired
from tests.governance.quality_support import FLORES, flores, needs_data, ntrex

RUSSIAN = "Привет, как дела? Всё хорошо."
GREEK = "Καλημέρα, πώς είστε σήμερα;"
ARABIC = "السلام عليكم ورحمة الله"
THAI = "สวัสดีครับ สบายดีไหม"
HINDI = "नमस्ते, आप कैसे हैं?"
CHINESE = "今天天气很好，我们去公园吧。"
GERMAN = "Die schönen Mädchen aus Köln grüßen."


def signs(texts):
    return mojibake.signs(texts, CodePoints(texts))


def misread(text, as_encoding, from_encoding="utf-8"):
    """Bytes without a character there stay what they are in Latin-1."""
    return "".join(
        bytes([byte]).decode(as_encoding, "ignore") or bytes([byte]).decode("latin-1")
        for byte in text.encode(from_encoding)
    )


@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "cp1251", "cp1253", "cp1256", "koi8-r", "cp866", "mac-roman"]
)
@pytest.mark.parametrize("text", [RUSSIAN, GREEK, ARABIC, THAI, HINDI, CHINESE])
def test_utf8_read_in_another_encoding(text, encoding):
    assert signs([misread(text, encoding)]) != [None]


@pytest.mark.parametrize(
    ("text", "written", "read"),
    [
        (RUSSIAN, "cp1251", "latin-1"),
        (RUSSIAN, "koi8-r", "cp1252"),
        (GREEK, "cp1253", "latin-1"),
        (ARABIC, "cp1256", "cp1252"),
        (THAI, "cp874", "cp1252"),
        (CHINESE, "gbk", "latin-1"),
        (GERMAN, "cp1252", "cp1251"),
    ],
)
def test_legacy_encodings_of_alphabets(text, written, read):
    assert signs([misread(text, read, written)]) != [None]


def test_cyrillic_as_letters_of_western_europe():
    from ftfy.badness import badness

    text = misread("привет, как дела", "latin-1", "cp1251")
    assert badness(text) == 0
    assert signs([text]) == ["most letters are accented ones of Western Europe"]


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "big5", "cp949"])
def test_utf8_read_as_a_multi_byte_encoding(encoding):
    """Some bytes are no character there, which a reader shows; and where all are, it is undone."""
    assert signs([CHINESE.encode().decode(encoding, "replace")]) != [None]


def test_utf8_read_as_a_multi_byte_encoding_without_a_loss():
    text = "你好世界"
    wrong = text.encode().decode("gbk")
    assert signs([wrong]) == [f"reads as {text!r} in UTF-8"]
    assert repaired(wrong) == text


@pytest.mark.parametrize(
    "text",
    [
        RUSSIAN.encode("ascii", "replace").decode(),
        GERMAN.encode("ascii", "replace").decode(),
        "The ???? is closed",
        "He said ??? ?? ????",
        "The caf\ufffd was closed",
        "One\x00two",
        "Col\x81r",
        "Private \ue000 use",
        "Gr\\u00fc\\u00dfe",
        "caf=C3=A9",
        "%D0%9F%D1%80",
        "He saw a mаn",  # Cyrillic а
    ],
)
def test_lost_letters_and_left_bytes(text):
    assert signs([text]) != [None]


@pytest.mark.parametrize(
    "text",
    [
        *(RUSSIAN, GREEK, ARABIC, THAI, HINDI, CHINESE, GERMAN),
        "联通",  # well-formed UTF-8 in GB 18030
        "Её моё.",
        "What?! Really??? Yes.",
        "What ?? I see.",
        "¿Qué? ¡Ah! «Sí».",
        "https://example.org/a?b=c%D0%9F&u=%C3%A9",
        "x² ≈ 3 ± ½ · 20 °C, 5 µm — “naïve” café’s œuvre",
        "Đã được ướt",
        "A\tb\nc",
        "Zero\u200cwidth\u200djoiners \u00ad",
        "😀 👩‍👩‍👧 ✓",
    ],
)
def test_sound_text_has_no_sign(text):
    assert signs([text]) == [None]


@pytest.mark.parametrize("text", [RUSSIAN, ARABIC, THAI, CHINESE])
@pytest.mark.parametrize("encoding", ["cp1251", "cp1256", "koi8-r", "cp866"])
def test_repair_reads_it_again(text, encoding):
    try:
        wrong = text.encode().decode(encoding)
    except UnicodeDecodeError:
        pytest.skip("these bytes are no text there")
    assert repaired(wrong) == text


def test_repair_leaves_what_is_right():
    for text in (
        RUSSIAN,
        GREEK,
        ARABIC,
        THAI,
        HINDI,
        CHINESE,
        GERMAN,
        "“Ｑ” ﬁ … it’s\r\nso",
        "a < b & c",
        "",
    ):
        assert repaired(text) == text
    assert repaired("schÃ¶n &amp; gut") == "schön & gut"
    assert repaired("a\x00b &lt; c") == "ab < c"
    assert repaired("e\u0301") == "\u00e9"


def test_the_quick_look_hides_nothing_from_ftfy():
    """`badness` is asked only where its characters meet; it must never have had an answer elsewhere."""
    from ftfy.badness import MOJIBAKE_CATEGORIES, badness

    generator = random.Random(0)
    pool = [chr(code) for code in range(0x20, 0x500)] + list("".join(MOJIBAKE_CATEGORIES.values())) * 3
    pool += list("abcxyz   ") * 20
    texts = ["".join(generator.choices(pool, k=generator.choice([2, 3, 4, 5, 8]))) for _ in range(20_000)]
    texts = [text for text in texts if "\n" not in text]
    found = signs(texts)
    assert sum(bool(badness(text)) for text in texts) > 1000
    assert [text for text, sign in zip(texts, found, strict=True) if sign is None and badness(text)] == []


@pytest.mark.parametrize("piece", ["a?b", "%E4"])
def test_a_long_word_takes_no_quadratic_time(piece):
    started = time.process_time()
    assert signs([piece * 40_000]) != [None]
    assert signs([f"{piece * 40_000}://"]) == [None]
    assert time.process_time() - started < 2


@needs_data
@pytest.mark.parametrize("language", FLORES)
def test_real_text_has_no_sign(language):
    texts = flores(language) + ntrex(language)
    assert [(text, sign) for text, sign in zip(texts, signs(texts), strict=True) if sign] == []
