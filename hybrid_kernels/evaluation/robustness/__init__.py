"""Robustness to light orthographic variation: seeded recipes by language and script, and what they cost.

>>> from hybrid_kernels.evaluation.robustness import change, perturb, recipes_for, robustness_metrics
>>> recipes_for("th")
('tone_loss', 'punctuation_loss', ..., 'keyboard_noise')
>>> perturb(["Hiçbir ışık kalmadı."], "tr", "upper_case")
['HİÇBİR IŞIK KALMADI.']
>>> varied = perturb(texts, "ur", "keyboard_noise", seed=1, rate=0.1)
>>> change(texts, varied)                                     # shares of texts and of characters that differ
Change(texts=1.0, characters=0.0777...)

To measure a classifier: predict the rows as they are and, of each language, as each of its recipes varies them.

>>> varied = {}                                               # recipe → positions of rows, their probabilities
>>> for recipe in RECIPES:
...     rows = [i for i, row in enumerate(data) if recipe in recipes_for(row["language"])]
...     varied[recipe] = rows, predict([perturbed_row(data[i], recipe) for i in rows])
>>> table = robustness_metrics(predict(data), labels, languages, varied)
>>> table["per_language"]["ur"]["keyboard_noise"]["accuracy_drop"], table["per_script"]["Arab"]["keyboard_noise"]["n"]

`natural_romanised` finds rows that their writers romanised, a test that needs no recipe; `romanised_metrics` is it.
"""

from hybrid_kernels.evaluation.robustness.metrics import paired_metrics, robustness_metrics
from hybrid_kernels.evaluation.robustness.perturbation import Change, change, perturb, recipes_for
from hybrid_kernels.evaluation.robustness.recipes import RECIPES, Recipe
from hybrid_kernels.evaluation.robustness.romanised import natural_romanised, romanised_metrics

__all__ = [
    "RECIPES",
    "Change",
    "Recipe",
    "change",
    "natural_romanised",
    "paired_metrics",
    "perturb",
    "recipes_for",
    "robustness_metrics",
    "romanised_metrics",
]
