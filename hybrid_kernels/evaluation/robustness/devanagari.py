"""Spelling of nasals, and the nukta, in Devanagari."""

from __future__ import annotations

import regex

from hybrid_kernels.evaluation.robustness.edits import letters_replaced, per_cluster, per_word, without_marks

# A nasal before a stop of its own class (varga), after a vowel: the anusvara stands for all five.
_HOMORGANIC = regex.compile(
    r"(?<=[\p{L}\p{M}--[\u094d\u0902\u0901]])(?:ङ्(?=[क-घ])|ञ्(?=[च-झ])|ण्(?=[ट-ढ])|न्(?=[त-ध])|म्(?=[प-भ]))",
    regex.V1,
)

nukta_loss = per_cluster(lambda cluster, following: without_marks(cluster, frozenset("\u093c")))
chandrabindu_as_anusvara = letters_replaced({"\u0901": "\u0902"})
nasal_as_anusvara = per_word(lambda word, tag: _HOMORGANIC.sub("\u0902", word))
