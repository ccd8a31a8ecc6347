"""The language step on a few texts: rows in, objections and languages out."""

from collections.abc import Sequence

from hybrid_kernels.governance import language
from hybrid_kernels.governance.batch import Batch, Columns, Features
from hybrid_kernels.governance.policy import GovernancePolicy

LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")

# One sentence of one meaning in each language, written for this test.
SENTENCES = {
    "ar": "وصل القطار إلى المحطة متأخرا ساعة كاملة بسبب الأمطار الغزيرة.",
    "bg": "Влакът пристигна на гарата с един час закъснение заради силния дъжд.",
    "de": "Der Zug kam wegen des starken Regens eine Stunde zu spät am Bahnhof an.",
    "el": "Το τρένο έφτασε στον σταθμό με μία ώρα καθυστέρηση λόγω της δυνατής βροχής.",
    "en": "The train reached the station an hour late because of the heavy rain.",
    "es": "El tren llegó a la estación con una hora de retraso por la fuerte lluvia.",
    "fr": "Le train est arrivé à la gare avec une heure de retard à cause de la forte pluie.",
    "hi": "भारी बारिश के कारण ट्रेन एक घंटे की देरी से स्टेशन पहुँची।",
    "ru": "Поезд прибыл на станцию с опозданием на час из-за сильного дождя.",
    "sw": "Treni ilifika kituoni ikiwa imechelewa saa moja kwa sababu ya mvua kubwa.",
    "th": "รถไฟมาถึงสถานีช้าไปหนึ่งชั่วโมงเพราะฝนตกหนัก",
    "tr": "Tren şiddetli yağmur yüzünden istasyona bir saat geç ulaştı.",
    "ur": "شدید بارش کی وجہ سے ٹرین ایک گھنٹہ دیر سے اسٹیشن پہنچی۔",
    "vi": "Tàu đến ga muộn một giờ vì trời mưa rất to.",
    "zh": "由于下大雨，火车晚了一个小时才到站。",
}


class Judged:
    """What the step makes of rows.

    Args:
        texts: one list a column, of one or two.
        claims: likewise; None: nothing is claimed anywhere.
        policy: fields of the language section.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[str | None]],
        claims: Sequence[Sequence[str | None]] | None = None,
        languages: Sequence[str] = LANGUAGES,
        translation: bool = False,
        **policy: object,
    ) -> None:
        names = ("text",) if len(texts) == 1 else ("one", "other")
        expected = tuple(f"language_{name}" for name in names) if claims else ()
        columns = Columns(names, expected, translation=translation)
        nothing = [[None] * len(column) for column in texts]
        wanted = tuple(language.checked_languages(languages))
        self.batch = Batch(tuple(map(list, texts)), tuple(map(list, claims or nothing)), columns, wanted)
        self.policy = GovernancePolicy.model_validate({"language": policy})
        self.features: Features = language.measure(self.batch, self.policy)
        self.objections = language.objections(self.batch, self.features, self.policy, {})
        self.languages = language.row_languages(self.batch, self.features, self.policy)

    def against(self, row: int = 0) -> list[tuple[str | None, str, str]]:
        """(column, reason, detail) of what rejects a row."""
        return [
            (objection.column, objection.reason, objection.detail[list(objection.rows).index(row)])
            for objection in self.objections
            if objection.rejects and row in objection.rows
        ]

    def flags(self, row: int = 0) -> list[str]:
        return [o.reason for o in self.objections if not o.rejects and row in o.rows]

    def rejected(self) -> set[int]:
        return {int(row) for o in self.objections if o.rejects for row in o.rows}


def judged(text: str, claim: str | None = None, **options: object) -> Judged:
    """One text."""
    return Judged([[text]], [[claim]] if claim else None, **options)


def reason(text: str, claim: str | None = None, **options: object) -> str | None:
    """Why one text is rejected."""
    found = judged(text, claim, **options).against()
    assert len(found) <= 1, found
    return found[0][1] if found else None
