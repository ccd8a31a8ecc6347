"""Letters of the Arabic script that are written for one another, vowel signs and elongation."""

from __future__ import annotations

from hybrid_kernels.evaluation.robustness.edits import Proposal, letters_replaced, per_cluster, without_marks

# Fathatan to sukun, and the superscript alef. Madda and hamza above (0653–0655) are parts of letters.
_TASHKIL = frozenset(map(chr, (*range(0x064B, 0x0653), 0x0670)))
# Letters that join the next one: Unicode's joining type D (ArabicShaping.txt).
_JOINING = frozenset("بتثجحخسشصضطظعغفقكلمنهيئپچکگیہھٹں")
_ALEFS = frozenset("اأإآٱ")
_TATWEEL = "ـ"


def _elongated(cluster: str, following: str) -> str:
    joins = cluster[0] in _JOINING and following.isalpha() and following not in ("ء", _TATWEEL)
    # ل and ا are one ligature.
    return cluster + _TATWEEL if joins and not (cluster[0] == "ل" and following in _ALEFS) else cluster


def _final(letter: str, other: str) -> Proposal:
    def replace(cluster: str, following: str) -> str:
        return other + cluster[1:] if cluster[0] == letter and not following.isalpha() else cluster

    return per_cluster(replace)


alef_hamza_loss = letters_replaced(dict.fromkeys("أإآٱ", "ا"))
hamza_carrier_loss_arabic = letters_replaced({"ؤ": "و", "ئ": "ي"})
hamza_carrier_loss_persian = letters_replaced({"ؤ": "و", "ئ": "ی", "ۓ": "ے", "ۂ": "ہ"})
yeh_as_alef_maqsura = _final("ي", "ى")
alef_maqsura_as_yeh = _final("ى", "ي")
teh_marbuta_as_heh = letters_replaced({"ة": "ه"})
persian_kaf_yeh = letters_replaced({"ك": "ک", "ي": "ی"})
arabic_kaf_yeh = letters_replaced({"ک": "ك", "ی": "ي", "ہ": "ه"})
do_chashmi_heh = letters_replaced({"ہ": "ھ"})
nun_ghunna_as_nun = letters_replaced({"ں": "ن"})
tashkil_loss = per_cluster(lambda cluster, following: without_marks(cluster, _TASHKIL))
tatweel = per_cluster(_elongated)
