import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from hybrid_kernels.evaluation.parallel import (
    directions,
    expand,
    load_parallel,
    sample_items,
    split_items,
)
from hybrid_kernels.evaluation.scoring import open_ids
from hybrid_kernels.evaluation.translation import (
    bits_per_byte,
    evaluate_translations,
    reference_nats,
    translation_prompt,
    translation_prompts,
)
from tests.evaluation.language_models import (
    causal_tokenizer,
    encoder_decoder_tokenizer,
    gemma,
    llama,
    plain_log_probability,
    t5,
)

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "flores200_dataset").is_dir(), reason=f"no parallel text at {DATA} (set HYBRID_KERNELS_DATA)"
)
TEXT = {
    "de": ["Guten Morgen.", "Die Katze  saß auf der Matte.", "", "Ja, natürlich."],
    "en": ["Good morning.", "The cat sat on the mat.", "Empty.", "Yes, of course."],
    "fr": ["Bonjour.", "Le chat était assis.", "Vide.", "Oui, bien sûr."],
}
BOTH = directions(["de", "en"])


def write_flores(folder):
    (folder / "dev").mkdir(parents=True)
    for code, language in (("deu_Latn", "de"), ("eng_Latn", "en"), ("fra_Latn", "fr")):
        (folder / "dev" / f"{code}.dev").write_text("\n".join(TEXT[language]) + "\n", encoding="utf-8")
    return folder


def write_aligned(folder):
    folder.mkdir()
    for language, lines in TEXT.items():
        (folder / f"dev.en-{language}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_txt(folder):
    folder.mkdir()
    for language, lines in TEXT.items():
        (folder / f"news.{language}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_tsv(folder):
    folder.mkdir()
    rows = ["\t".join(TEXT), *("\t".join(row) for row in zip(*TEXT.values(), strict=True))]
    (folder / "text.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "text.tsv"


def write_jsonl(folder):
    folder.mkdir()
    rows = [dict(zip(TEXT, row, strict=True)) for row in zip(*TEXT.values(), strict=True)]
    rows[1] = {"translation": rows[1]}
    rows[3] = {"sentence_deu_Latn": rows[3]["de"], "sentence_eng_Latn": rows[3]["en"], "fr": rows[3]["fr"]}
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder / "text.jsonl"


@pytest.mark.parametrize("write", [write_flores, write_aligned, write_txt, write_tsv, write_jsonl])
def test_every_source_gives_the_same_pairs(tmp_path, write):
    source = write(tmp_path / "source")
    pairs = load_parallel(source, "dev", directions(["de", "en", "fr"]))
    assert [pair["languages"] for pair in pairs] == 2 * [["de", "en"], ["en", "fr"]] + [["en", "fr"]] + [
        ["de", "en"],
        ["en", "fr"],
    ]
    assert pairs[2]["texts"] == {"de": "Die Katze saß auf der Matte.", "en": "The cat sat on the mat."}
    assert pairs[2]["item"] == pairs[3]["item"] != pairs[0]["item"]
    assert len({pair["id"] for pair in pairs}) == len(pairs) == 7
    rows = expand(pairs, [("en", "de"), ("fr", "en")])
    assert [row["source"] for row in rows[:3]] == [
        "Good morning.",
        "The cat sat on the mat.",
        "Yes, of course.",
    ]
    assert [row["target"] for row in rows[3:]] == TEXT["en"]
    assert rows[0]["source_language"] == "en" and rows[3]["target_language"] == "en"


def test_a_split_is_not_read_as_another(tmp_path):
    for name, text in (("dev", "eins"), ("devtest", "zwei"), ("test2016", "drei")):
        for language in ("de", "en"):
            (tmp_path / f"{name}.{language}").write_text(f"{text}\n")
    for name, text in (("dev", "eins"), ("devtest", "zwei"), ("test2016", "drei")):
        (pair,) = load_parallel(tmp_path, name, BOTH)
        assert pair["texts"]["de"] == text
    for name in ("dev", "test2016"):
        for language in ("de", "en"):
            (tmp_path / f"{name}.{language}").unlink()
    for name in ("dev", "test"):
        with pytest.raises(
            FileNotFoundError, match=rf"one file named like {name}\.de or NAME\.de\.txt, it has devtest"
        ):
            load_parallel(tmp_path, name, BOTH)


@needs_data
def test_real_folders_are_read():
    flores = load_parallel(DATA / "flores200_dataset", "dev", directions(["sw", "en", "th"]))
    assert len(flores) == 2 * 508
    assert len(load_parallel(DATA / "flores200_dataset", "dev", [("arb_Latn", "zh")])) == 508
    assert len(load_parallel(DATA / "ntrex", "ntrex", directions(["en", "hi", "ur"], "all"))) == 3 * 1997
    tico = load_parallel(DATA / "tico19", "test.en-sw", [("sw", "en")])
    assert len(tico) > 2000
    with pytest.raises(FileNotFoundError, match="no split 'devtest'; it has dev"):
        load_parallel(DATA / "flores200_dataset", "devtest", BOTH)


def test_what_cannot_be_read_is_named(tmp_path):
    flores = write_flores(tmp_path / "flores")
    with pytest.raises(FileNotFoundError, match="has no file for sw"):
        load_parallel(flores, "dev", [("sw", "en")])
    (flores / "dev" / "deu_Latn.dev").write_text("a\nb\n")
    with pytest.raises(
        ValueError, match=r"same number of lines: .*deu_Latn\.dev has 2, .*eng_Latn\.dev has 4"
    ):
        load_parallel(flores, "dev", BOTH)
    with pytest.raises(FileNotFoundError, match=r"no such folder or file \(allowed"):
        load_parallel(tmp_path / "nowhere", "dev", BOTH)
    with pytest.raises(FileNotFoundError, match=r"must have one file named like dev\.sw"):
        load_parallel(write_txt(tmp_path / "txt"), "dev", [("sw", "en")])
    tsv = write_tsv(tmp_path / "tsv")
    tsv.write_text(tsv.read_text() + "one\ttwo\n")
    with pytest.raises(ValueError, match=r"text\.tsv:6: 2 columns instead of 3"):
        load_parallel(tsv, "dev", BOTH)
    with pytest.raises(ValueError, match="has no pair for en-sw"):
        load_parallel(write_jsonl(tmp_path / "jsonl"), "dev", [("en", "sw")])


def test_directions():
    assert directions(["de", "en", "fr"]) == [("de", "en"), ("en", "de"), ("fr", "en"), ("en", "fr")]
    assert len(directions(["de", "en", "fr"], "all")) == 6
    assert directions(["de", "en", "fr"], ["fr-de", "de-en"]) == [("fr", "de"), ("de", "en")]
    with pytest.raises(ValueError, match="direction 'de-xx' must be SOURCE-TARGET"):
        directions(["de", "en"], ["de-xx"])
    with pytest.raises(ValueError, match="must hold 'en'"):
        directions(["de", "fr"])
    with pytest.raises(ValueError, match="'english', 'all' or a list"):
        directions(["de", "en"], "de-en")


def many(count, languages=("de", "en", "fr")):
    return [
        {"id": f"{i}-{a}-{b}", "item": str(i), "languages": [a, b], "texts": {a: f"{a} {i}", b: f"{b} {i}"}}
        for i in range(count)
        for a, b in (("de", "en"), ("en", "fr"))
        if a in languages and b in languages
    ]


def test_items_stay_together():
    pairs = many(20)
    rest, held = split_items(pairs, 0.25, seed=3)
    assert len(held) == 10 and len(rest) == 30
    assert not {pair["item"] for pair in rest} & {pair["item"] for pair in held}
    assert split_items(pairs, 5, seed=3) == (rest, held) != split_items(pairs, 5, seed=4)
    small, large = sample_items(pairs, 4, 0), sample_items(pairs, 8, 0)
    assert len(small) == 8 and all(pair in large for pair in small)
    with pytest.raises(ValueError, match="both sides of 20 items, got 20"):
        split_items(pairs, 20, 0)
    with pytest.raises(ValueError, match="from 1 to the number of items, 20, got 21"):
        sample_items(pairs, 21, 0)


def test_prompts_show_examples_of_their_direction_from_another_part():
    rest, held = split_items(many(12), 4, seed=0)
    rows = expand(held, [("de", "en"), ("en", "fr")])
    examples = expand(rest, [("de", "en"), ("en", "fr")])
    prompts = translation_prompts(rows, examples, shots=2, seed=1)
    assert prompts[0].startswith("Translate from German to English.\n\nGerman: de ")
    assert prompts[0].endswith(f"\n\nGerman: {rows[0]['source']}\nEnglish:") and prompts[0].count("\n\n") == 3
    beginnings = {prompt.rpartition("\n\n")[0] for prompt in prompts[:4]}
    assert len(beginnings) == 1, "the same examples for every row of a direction"
    # The same sentences in every direction, and fewer shots are a part of more.
    shown = [line.split()[-1] for line in prompts[0].split("\n") if line.startswith("English: ")]
    other = [line.split()[-1] for line in prompts[-1].split("\n\n")[1:-1] for line in [line.split("\n")[0]]]
    assert shown == other and len(shown) == 2
    more = translation_prompts(rows, examples, shots=3, seed=1)[0]
    assert more.startswith(prompts[0].rpartition("\n\n")[0])
    assert translation_prompts(rows)[0] == translation_prompt(rows[0])
    with pytest.raises(ValueError, match=r"a part that is not scored, but .* is among the rows"):
        translation_prompts(rows, rows, shots=1)
    with pytest.raises(ValueError, match="shots is 9, but there are 8 examples from "):
        translation_prompts(rows, examples, shots=9)
    with pytest.raises(ValueError, match="language 'xx' has no name"):
        translation_prompt({"source_language": "xx", "target_language": "en", "source": "a"})


@pytest.mark.parametrize("name", ["llama", "gemma", "t5"])
def test_bits_per_byte_are_those_of_a_plain_loop(name, one_thread):
    model = {"llama": llama, "gemma": gemma, "t5": t5}[name]()
    tokenizer = encoder_decoder_tokenizer() if name == "t5" else causal_tokenizer()
    texts = [("Guten Morgen.", "Good morning."), ("Katze", "The cat sat."), ("saß", "sat: Größe")]
    rows = [
        {"item": str(i), "source_language": "de", "target_language": "en", "source": source, "target": target}
        for i, (source, target) in enumerate(texts)
    ]
    prompts = translation_prompts(rows)
    nats = reference_nats(model, tokenizer, rows, prompts, batch_size=3)
    plain = []
    for row, prompt in zip(rows, prompts, strict=True):
        if name == "t5":
            given, ids = tokenizer(prompt)["input_ids"], tokenizer(row["target"])["input_ids"][:-1]
        else:
            joined = open_ids(tokenizer, f"{prompt} {row['target']}")
            alone = open_ids(tokenizer, prompt)
            start = next(i for i, (a, b) in enumerate(zip([*alone, -1], joined, strict=False)) if a != b)
            given, ids = joined[:start], joined[start:]
        plain.append(-plain_log_probability(model, given, ids))
    np.testing.assert_allclose(nats, plain, rtol=1e-10)
    # "Größe" has two letters of two bytes.
    assert bits_per_byte(rows, nats) == pytest.approx(sum(plain) / math.log(2) / (13 + 12 + 12), rel=1e-10)
    evaluated = evaluate_translations(rows, nats=nats)
    assert evaluated["directions"] == {"de-en": {"n": 3, "bits_per_byte": bits_per_byte(rows, nats)}}
    with pytest.raises(ValueError, match="equally many and at least one, got 3 and 2"):
        bits_per_byte(rows, nats[:2])


def test_balance_of_bleu_is_without_that_over_characters(monkeypatch, tmp_path):
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    rows = [
        {
            "source_language": source,
            "target_language": target,
            "source": "x",
            "target": f"The {target} sat down.",
        }
        for pair in (("th", "en"), ("de", "en"))
        for source, target in (pair, pair[::-1])
    ]
    balance = evaluate_translations(rows, [row["target"] for row in rows])["balance"]
    assert set(balance["bleu"]["languages"]) == {"de"} and set(balance["chrf"]["languages"]) == {"de", "th"}


def test_directions_are_scored_apart_beside_copied_sources():
    rows = expand(many(6), directions(["de", "en", "fr"]))
    translations = [row["target"] if row["source_language"] == "de" else "" for row in rows]
    found = evaluate_translations(rows, translations, np.ones(len(rows)))
    one = found["directions"]["de-en"]
    assert list(found["directions"]) == ["de-en", "en-de", "fr-en", "en-fr"]
    assert one["chrf"] == pytest.approx(100) and one["empty"] == 0 and one["n"] == 6
    assert found["directions"]["en-de"]["empty"] == 1 and found["directions"]["en-de"]["chrf"] == 0
    assert 0 < one["copy"]["chrf"] < 100
    assert one["bits_per_byte"] == pytest.approx(1 / math.log(2) / 4)
    assert found["balance"]["chrf"]["languages"]["de"]["difference"] == pytest.approx(100)
    assert found["balance"]["chrf"]["mean"] == pytest.approx(50)
    assert found["balance"]["bits_per_byte"]["mean"] == pytest.approx(0)
    with pytest.raises(ValueError, match="give translations, nats or both"):
        evaluate_translations(rows)
    with pytest.raises(ValueError, match="translations must have one entry a row, got 1 for 24 rows"):
        evaluate_translations(rows, ["a"])
