"""Personal data: what is found, what is left alone, and masks."""

import os
import time
import timeit
from pathlib import Path

import numpy as np
import pytest

from hybrid_kernels.governance.batch import Batch, Columns
from hybrid_kernels.governance.personal import KINDS, fields, find, masked, measure, objections
from hybrid_kernels.governance.policy import GovernancePolicy

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "xnli").is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)"
)
#: FLORES' codes.
CODES = "arb_Arab bul_Cyrl deu_Latn ell_Grek eng_Latn spa_Latn fra_Latn hin_Deva rus_Cyrl swh_Latn tha_Thai tur_Latn"
CODES += " urd_Arab vie_Latn zho_Hans"
POLICY = GovernancePolicy.model_validate({"personal_data": {"enabled": True}})


def found(text, language=None):
    return [(kind, text[start:end]) for start, end, kind in find(text, KINDS, language)]


def policy(**changes):
    return GovernancePolicy.model_validate({"personal_data": {"enabled": True, **changes}})


#: A sentence in each language with an e-mail address, a national and an international number.
SENTENCES = {
    "ar": "اكتب إلى amal@example.org أو اتصل على ٠١٠٠١٢٣٤٥٦٧ أو +٢٠ ١٠ ٠١٢٣ ٤٥٦٧ غدًا.",
    "bg": "Пишете на office@example.bg, обадете се на 02 981 1234 или +359 888 123 456 утре.",
    "de": "Schreiben Sie an büro@bücher.example, Tel. 030/12 34 56 78 oder +49 (0)30 901820, bitte.",
    "el": "Γράψτε στο info@παράδειγμα.ελ, τηλ. 210 1234567 ή +30 694 123 4567, αύριο.",
    "en": "Write to jo@samaritans.org, call 859-292-3680 or +44 20 7946 0958, please.",
    "es": "Escriba a josé.pérez@example.es, llame al 912 345 678 o al +34 612 345 678 mañana.",
    "fr": "Écrivez à contact@example.fr, appelez le 01 42 68 53 00 ou le +33 6 12 34 56 78 demain.",
    "hi": "उपयोगकर्ता@उदाहरण.भारत पर लिखें, ९८१८२७४५९२ या +९१ ९८१८२ ७४५९२ पर फ़ोन करें।",
    "ru": "Пишите на почта@пример.рф, звоните 8 (495) 123-45-67 или +7 916 123-45-67 завтра.",
    "sw": "Andika kwa ofisi@example.co.ke, piga simu 0722 123456 au +255 754 123 456 kesho.",
    "th": "เขียนถึงinfo@example.thหรือโทร 02-123-4567 หรือ +66 81 234 5678 พรุ่งนี้",
    "tr": "Bize bilgi@örnek.com.tr yazın, 0532 123 45 67 ya da +90 212 123 45 67 arayın.",
    "ur": "مجھے ali@example.pk پر لکھیں، 0300 1234567 یا +۹۲ ۳۰۰ ۱۲۳۴۵۶۷ پر فون کریں۔",
    "vi": "Hãy viết cho lan@example.vn, gọi 0912 345 678 hoặc +84 24 3825 4321 ngày mai.",
    "zh": "请联系zhang@example.cn或拨打13812345678、+86 10 6552 9988咨询。",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_masks_of_each_language(language):
    text = SENTENCES[language]
    result = masked(text, POLICY, language)
    assert (result.count("[EMAIL]"), result.count("[PHONE]")) == (1, 2), result
    assert not any(c.isdigit() or c in "@+" for c in result), result
    # What stands around them is untouched, and nothing of the address is left.
    before = result.split("[EMAIL]")[0]
    assert text.startswith(before)
    assert before[-1:] in ("", " ", "ง", "系"), result
    assert text.endswith(result.split("[PHONE]")[-1])
    assert masked(result, POLICY, language) == result


def test_masks_leave_the_words_they_touch_in_scripts_without_spaces():
    assert masked(SENTENCES["zh"], POLICY, "zh") == "请联系[EMAIL]或拨打[PHONE]、[PHONE]咨询。"
    assert masked("เขียนถึงinfo@example.comหรือ", POLICY) == "เขียนถึง[EMAIL]หรือ"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.y+tag%1@mail.example.co.uk, ok", "x.y+tag%1@mail.example.co.uk"),
        ("x＠example.com", "x＠example.com"),
        ("a@mail.grün.de!", "a@mail.grün.de"),
        ("<用户@例子.广告>。", "用户@例子.广告"),
        ("J@xn--bcher-kva.example.", "J@xn--bcher-kva.example"),
    ],
)
def test_email_addresses(text, expected):
    assert found(text) == [("email", expected)]


@pytest.mark.parametrize(
    "text", ["a@b", "@name said", "a@b.c", "5 @ 3.50", "me@1.2.3", "a @ b.com", "user@.com"]
)
def test_no_email_addresses(text):
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Auf 03.11.2010 um 12:30", "de"),
        ("le 03.02.1860 12 heures", "fr"),
        ("im Jahr 1914-1918, 2010 2011 2015", "ar"),
        ("năm (1900-1901)", "vi"),
        ("วันที่ 09-01-2563 นี้", "th"),
        ("costs $1,234,567.89 or 1.234.567.890 or 12 500 000", "en"),
        ("1 000 000 рублей, 15 250 000", "ru"),
        ("ISBN 978-3-16-148410-0, 0-306-40615-2", "de"),
        ("3.14159265, 0.2847123456, 52.5200 13.4050", "de"),
        ("6:4 6:3 7-6 21-19 100 200 300", "en"),
        ("1234567890123456789", "en"),
        ("+1 234", "en"),
    ],
)
def test_numbers_that_are_no_phones(text, language):
    assert found(text, language) == []


def test_numbers_beside_a_date():
    """German grouping is free where a number starts with 0."""
    text = "Am 03.11.2010, ISBN 0-306-40615-2: 0171-12 34 567"
    assert found(text, "de") == [("phone", "0171-12 34 567")]


def test_national_numbers_need_the_language():
    text = "859-292-3680 +1 859-292-3680"
    assert len(found(text, "en")) == 2
    assert found(text) == found(text, "sv") == [("phone", "+1 859-292-3680")]
    assert found("電話 02 2345 6789", "zh-Hant") == [("phone", "02 2345 6789")]
    assert found("फ़ोन 098182 74592", "hi-Latn") == found("फ़ोन 098182 74592", "hi") != []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DE89 3704 0044 0532 0130 00 BIC", "DE89 3704 0044 0532 0130 00"),
        ("账号DE89370400440532013000谢", "DE89370400440532013000"),
        ("gb82west12345698765432.", "gb82west12345698765432"),
        ("DE88 3704 0044 0532 0130 00", None),  # check digits
        ("DE89 3704 0044 0532 0130", None),
        ("ADE89370400440532013000", None),
    ],
)
def test_ibans(text, expected):
    assert found(text) == ([("iban", expected)] if expected else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at 192.168.0.17:80", "192.168.0.17"),
        ("http://192.0.2.1/x", "192.0.2.1"),
        ("على ١٩٢.١٦٨.١.١٠ الآن", "١٩٢.١٦٨.١.١٠"),
        ("to 10.20.30.40.", "10.20.30.40"),
        ("2001:db8::ff00:42:8329/64", "2001:db8::ff00:42:8329"),
        ("[2001:0db8:0000:0000:0000:ff00:0042:8329]", "2001:0db8:0000:0000:0000:ff00:0042:8329"),
        ("::ffff:192.0.2.128", "::ffff:192.0.2.128"),
        ("fe80::1%eth0", "fe80::1"),
        ("version 10.20.30.40", None),
        ("v10.20.30.40", None),
        ("Версия 10.20.30.40", None),
        ("section 1.2.3.4", None),
        ("10.20.30.40.50", None),
        ("256.10.10.10", None),
        ("127.0.0.1 ::1 0.0.0.0", None),
        ("12:30:45, std::cout, a::b, dead::beef, 1::2", None),
    ],
)
def test_addresses(text, expected):
    assert found(text) == ([("ip", expected)] if expected else [])


def test_masking_ends_where_nothing_is_left():
    """A number that is one only once its neighbour is masked is masked too."""
    text = "a@b.org+49 30 901820 10.20.30.40 +49 30 901821 DE89370400440532013000+49 30 901820"
    once = masked(text, POLICY)
    assert masked(once, POLICY) == once
    assert not any(c.isdigit() for c in once)


def test_only_the_kinds_asked_for():
    text = "jo@samaritans.org, 192.168.0.17"
    assert masked(text, policy(kinds=["ip"])) == "jo@samaritans.org, [IP]"


def batch(texts, expected, languages=("en", "de")):
    names = ("a", "b")[: len(texts)]
    return Batch(tuple(texts), tuple(expected), Columns(names), languages)


def test_features_count_what_each_text_has():
    rows = batch(
        [["jo@a.org, x@b.org", "859-292-3680", None, ""], ["none 1999", "859-292-3680", "10.20.30.40", None]],
        [["en", "en", None, None], ["de", "de", "de", None]],
    )
    features = measure(rows, POLICY)
    assert set(features) == set(fields(rows.columns, POLICY))
    assert {name: values.tolist() for name, values in features.items() if values.any()} == {
        "email_0": [2, 0, 0, 0],
        "phone_0": [0, 1, 0, 0],  # the language that the text claims decides
        "ip_1": [0, 0, 1, 0],
    }
    assert set(measure(rows, policy(kinds=["ip"]))) == {"ip_0", "ip_1"}


@pytest.mark.parametrize("action", ["mask", "reject", "flag"])
def test_objections_reject_only_where_asked(action):
    rows = batch([["a", "jo@a.org, x@b.org", "y@c.org"]], [[None] * 3])
    chosen = policy(action=action)
    (objection,) = objections(rows, measure(rows, chosen), chosen, {})
    assert (objection.step, objection.reason, objection.column) == ("personal data", "e-mail address", "a")
    assert objection.rows.tolist() == [1, 2] and objection.rows.dtype == np.int64
    assert objection.score.tolist() == [2.0, 1.0] and objection.bound.tolist() == [0.0, 0.0]
    assert objection.rejects == (action == "reject")
    # Reports show details: no address may stand in one.
    assert [detail.split(",")[0] for detail in objection.detail] == ["2 e-mail addresses", "1 e-mail address"]
    assert all(("masked" in detail) == (action == "mask") for detail in objection.detail)
    assert objections(rows, measure(rows, chosen), policy(enabled=False), {}) == []


@pytest.mark.parametrize("number", ["0171 {}", "{}", "a@b{}.org", "10.20.{0:.2}.{0:.2}"])
def test_a_long_table_of_numbers_takes_no_minutes(number):
    text = "; ".join(number.format(str(1_000_000 + 7919 * i)) for i in range(6000))
    started = time.process_time()
    once = masked(text, POLICY, "de")
    assert time.process_time() - started < 20
    assert (once.count("]") == 6000) == (number != "{}")


def test_a_text_without_candidates_is_cheap():
    text = "There is consternation among some AMs at a suggestion that their title should change. " * 2
    rows = batch([[text] * 2000], [["en"] * 2000])
    seconds = min(timeit.repeat(lambda: measure(rows, POLICY), number=1, repeat=5))
    assert seconds / len(rows) < 10e-6  # about 1.5 µs; room for a slow machine


def lines(*path):
    return DATA.joinpath(*path).read_text(encoding="utf-8").split("\n")[:-1]


@needs_data
def test_next_to_nothing_is_found_in_clean_text():
    """What is found are the address and the numbers that the news and guide books do print."""
    hits, total = [], 0
    for language, code in zip(SENTENCES, CODES.split(), strict=True):
        pairs = lines("xnli", f"dev-{language}.tsv")[::3]
        texts = [
            *lines("flores200_dataset", "dev", f"{code}.dev"),
            *lines("ntrex", f"ntrex.{language}.txt"),
            *(text for pair in pairs for text in pair.split("\t")[:2]),
        ]
        total += len(texts)
        hits += [found(text, language) for text in texts]
    hits = [span for spans in hits for span in spans]
    assert total > 60_000 and len(hits) / total <= 0.001
    assert ("email", "jo@samaritans.org") in hits and ("phone", "859-292-3680") in hits
    bare = {"".join(c for c in text if c.isalnum()) for _, text in hits}
    assert bare == {"josamaritansorg", "8592923680", "0800555111", "7023691540"}
