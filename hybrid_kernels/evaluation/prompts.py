"""The prompts: natural language inference by a question and a verbaliser, in 15 languages. The wording is our own.

Every prompt asks whether a statement is true given a text, names the three answers, and ends where the answer begins. A
verbaliser is what follows the prompt, its leading space included where the language writes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """`template` with the fields {premise} and {hypothesis}; `verbalizers`: one a label, in the labels' order."""

    template: str
    verbalizers: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("{premise}", "{hypothesis}"):
            if name not in self.template:
                raise ValueError(f"template must have the field {name}, got {self.template!r}")
        try:
            self.fill("", "")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"template must have no other field, and other braces doubled, got {self.template!r} ({error})"
            ) from None
        if len(set(self.verbalizers)) != len(self.verbalizers) or not all(
            v.strip() for v in self.verbalizers
        ):
            raise ValueError(
                f"verbalizers must be different texts that are not blank, got {self.verbalizers!r}"
            )

    def fill(self, premise: str, hypothesis: str) -> str:
        return self.template.format(premise=premise, hypothesis=hypothesis)


# Verbalisers in the order of training.data.LABELS: entailment, neutral, contradiction.
NLI_PROMPTS: Mapping[str, Prompt] = {
    "ar": Prompt(
        "النص: {premise}\nالعبارة: {hypothesis}\nهل العبارة صحيحة حسب النص؟ نعم أو ربما أو لا؟\nالجواب:",
        (" نعم", " ربما", " لا"),
    ),
    "bg": Prompt(
        "Текст: {premise}\nТвърдение: {hypothesis}\n"
        "Вярно ли е твърдението според текста? Да, може би или не?\nОтговор:",
        (" Да", " Може би", " Не"),
    ),
    "de": Prompt(
        "Text: {premise}\nAussage: {hypothesis}\n"
        "Stimmt die Aussage laut dem Text? Ja, vielleicht oder nein?\nAntwort:",
        (" Ja", " Vielleicht", " Nein"),
    ),
    "el": Prompt(
        "Κείμενο: {premise}\nΙσχυρισμός: {hypothesis}\n"
        "Αληθεύει ο ισχυρισμός σύμφωνα με το κείμενο; Ναι, ίσως ή όχι;\nΑπάντηση:",
        (" Ναι", " Ίσως", " Όχι"),
    ),
    "en": Prompt(
        "Text: {premise}\nStatement: {hypothesis}\n"
        "Is the statement true according to the text? Yes, maybe or no?\nAnswer:",
        (" Yes", " Maybe", " No"),
    ),
    "es": Prompt(
        "Texto: {premise}\nAfirmación: {hypothesis}\n"
        "¿Es cierta la afirmación según el texto? ¿Sí, quizás o no?\nRespuesta:",
        (" Sí", " Quizás", " No"),
    ),
    "fr": Prompt(
        "Texte : {premise}\nAffirmation : {hypothesis}\n"
        "L'affirmation est-elle vraie selon le texte ? Oui, peut-être ou non ?\nRéponse :",
        (" Oui", " Peut-être", " Non"),
    ),
    "hi": Prompt(
        "पाठ: {premise}\nकथन: {hypothesis}\nक्या पाठ के अनुसार यह कथन सही है? हाँ, शायद या नहीं?\nउत्तर:",
        (" हाँ", " शायद", " नहीं"),
    ),
    "ru": Prompt(
        "Текст: {premise}\nУтверждение: {hypothesis}\n"
        "Верно ли утверждение согласно тексту? Да, возможно или нет?\nОтвет:",
        (" Да", " Возможно", " Нет"),
    ),
    "sw": Prompt(
        "Maandishi: {premise}\nDai: {hypothesis}\n"
        "Je, dai hili ni kweli kulingana na maandishi? Ndiyo, labda au hapana?\nJibu:",
        (" Ndiyo", " Labda", " Hapana"),
    ),
    "th": Prompt(
        "ข้อความ: {premise}\nคำกล่าว: {hypothesis}\nคำกล่าวนี้เป็นจริงตามข้อความหรือไม่ ใช่ อาจจะ หรือไม่ใช่\nคำตอบ:",
        (" ใช่", " อาจจะ", " ไม่ใช่"),
    ),
    "tr": Prompt(
        "Metin: {premise}\nİddia: {hypothesis}\nMetne göre bu iddia doğru mu? Evet, belki ya da hayır?\nCevap:",
        (" Evet", " Belki", " Hayır"),
    ),
    "ur": Prompt(
        "متن: {premise}\nبیان: {hypothesis}\nکیا متن کے مطابق یہ بیان درست ہے؟ ہاں، شاید یا نہیں؟\nجواب:",
        (" ہاں", " شاید", " نہیں"),
    ),
    "vi": Prompt(
        "Văn bản: {premise}\nNhận định: {hypothesis}\n"
        "Theo văn bản, nhận định này có đúng không? Đúng, có thể hay sai?\nTrả lời:",
        (" Đúng", " Có thể", " Sai"),
    ),
    "zh": Prompt(
        "文本：{premise}\n陈述：{hypothesis}\n根据文本，该陈述正确吗？是、也许还是否？\n回答：",
        ("是", "也许", "否"),
    ),
}


def prompt_for(language: str, prompts: str | Mapping[str, Prompt] = "own") -> Prompt:
    """The prompt for rows of a language.

    Args:
        prompts: "own", each language's of `NLI_PROMPTS`; "en", the English one for all; or a table of one's own.

    Raises ValueError where there is none.
    """
    if prompts == "en":
        return NLI_PROMPTS["en"]
    if isinstance(prompts, str) and prompts != "own":
        raise ValueError(f"prompts must be 'own', 'en' or a table by language, got {prompts!r}")
    table = NLI_PROMPTS if isinstance(prompts, str) else prompts
    if language not in table:
        raise ValueError(
            f"there is no prompt in language {language!r}, only in "
            f"{', '.join(sorted(table))}; use prompts='en' or give a table"
        )
    return table[language]
