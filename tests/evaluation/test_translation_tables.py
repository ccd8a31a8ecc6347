"""Every table against direct computation from the arrays on disk."""

import json

import numpy as np
import pytest

from hybrid_kernels.evaluation.tables import (
    load_study,
    translation,
)
from tests.evaluation.runs import edit, make_translation_run, row


def test_translation_tables(translation_folder):
    content = json.loads((translation_folder / "results.json").read_text())
    (setting,) = load_study([translation_folder])
    assert setting.translates
    tables = {table.name: table for table in translation.direction_tables(translation.translations(setting))}
    assert list(tables) == ["translation_bleu", "translation_chrf", "translation_bits_per_byte"]
    own = [one["metrics"]["test"] for one in content["cells"] if one["method"] == "lora"]
    first = row(tables["translation_chrf"], "de → en, 16 sentences").values
    assert first[0].value == pytest.approx(np.mean([one["directions"]["de-en"]["chrf"] for one in own]))
    assert first[2].value == own[0]["directions"]["de-en"]["copy"]["chrf"]
    mean = row(tables["translation_bits_per_byte"], "Mean").values[0]
    direct = [np.mean([d["bits_per_byte"] for d in one["directions"].values()]) for one in own]
    assert (mean.value, mean.std) == (pytest.approx(np.mean(direct)), pytest.approx(np.std(direct, ddof=1)))
    assert mean.interval.low < mean.value < mean.interval.high
    assert mean.interval.estimate == pytest.approx(mean.value)
    # LoRA is the baseline, which has no mark; BLEU, chrF++ and bits per byte of the other method are compared with it.
    hybrid = row(tables["translation_chrf"], "Mean").values[1]
    assert mean.mark is None and hybrid.mark is not None and 0 < hybrid.p <= 1
    assert "over 16 sentences, each in all directions, and over seeds" in tables["translation_bleu"].note
    assert "best baseline (LoRA r = 8); p < 0.05" in tables["translation_bleu"].note
    assert "Holm-corrected for 3 comparisons" in tables["translation_bleu"].note
    assert "signature" in tables["translation_bleu"].note or "nrefs:1" in tables["translation_bleu"].note
    balance = translation.balance_table(translation.translations(setting), "chrf")
    assert [one.label for one in balance.rows] == ["de", "sw", "Mean"]
    difference = row(balance, "sw").values[2]
    assert difference.value == pytest.approx(
        np.mean([d["directions"]["sw-en"]["chrf"] - d["directions"]["en-sw"]["chrf"] for d in own])
    )


def edit_directions(run, change):
    edit(run, lambda content: [change(c["metrics"]["test"]["directions"]) for c in content["cells"]])


@pytest.fixture
def no_models(monkeypatch, tmp_path):
    """sacrebleu without models on disk: BLEU into Thai is over characters."""
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))


def test_bleu_over_characters_enters_no_mean(tmp_path, no_models):
    make_translation_run(tmp_path, languages=("de", "th"))
    found = translation.translations(load_study([tmp_path])[0])
    tables = {table.name: table for table in translation.direction_tables(found)}
    bleu = tables["translation_bleu"]
    rest = [row(bleu, label).values[0].value for label in ("de → en", "en → de", "th → en")]
    mean = row(bleu, "Mean of directions without *").values
    assert mean[0].value == pytest.approx(np.mean(rest)) == mean[0].interval.estimate
    assert mean[2].value == pytest.approx(
        np.mean([row(bleu, label).values[2].value for label in ("de → en", "en → de", "th → en")])
    )
    assert row(bleu, "en → th *, 16 sentences") and "* Not in the mean: over characters" in bleu.note
    assert row(tables["translation_chrf"], "Mean of directions").label == "Mean of directions"
    balances = {metric: translation.balance_table(found, metric) for metric in ("bleu", "chrf")}
    assert [one.label for one in balances["bleu"].rows] == ["de", "Mean"]
    assert [one.label for one in balances["chrf"].rows] == ["de", "th", "Mean"]


def test_bleu_over_characters_alone_has_no_mean(tmp_path, no_models):
    make_translation_run(tmp_path, languages=("th",))
    edit_directions(tmp_path, lambda directions: directions.pop("th-en"))
    found = translation.translations(load_study([tmp_path])[0])
    bleu = translation.direction_tables(found)[0]
    assert [one.label for one in bleu.rows] == ["en → th *, 16 sentences"] and "No intervals" in bleu.note
    assert found.mean("lora", "chrf").interval is not None


def test_bleu_of_other_tokenisers_than_those_here_is_not_resampled(tmp_path, no_models):
    make_translation_run(tmp_path, languages=("th",))

    def elsewhere(directions):
        directions["en-th"] |= {"first": "bleu", "bleu_signature": "nrefs:1|tok:flores200|smooth:exp"}

    edit_directions(tmp_path, elsewhere)
    found = translation.translations(load_study([tmp_path])[0])
    assert found.averaged("bleu") == ["th-en", "en-th"] and list(found.resampled.estimates) == [
        "chrf",
        "bits_per_byte",
    ]
    note = translation.direction_tables(found)[0].note
    assert "No intervals: sacrebleu's tokenisers here are not those" in note and "tok:flores200" in note
    # Cells that were scored in two ways have no mean of that direction.
    one = {"bleu_signature": "nrefs:1|tok:ja-mecab|smooth:exp"}
    edit(tmp_path, lambda c: c["cells"][0]["metrics"]["test"]["directions"]["en-th"].update(one))
    found = translation.translations(load_study([tmp_path])[0])
    assert found.averaged("bleu") == ["th-en"] and found.averaged("chrf") == ["th-en", "en-th"]
