"""Which rows are duplicates, of which row, and which leak from the evaluation rows."""

import random

import numpy as np
import pytest

from hybrid_kernels.governance.duplicates import signatures, verify
from hybrid_kernels.governance.text import normalise, shingles
from tests.governance.duplicates_support import (
    SENTENCE,
    expected,
    instead,
    policy,
    search,
    similarities,
)

EDITED = SENTENCE.replace("closed", "closes")
OTHER = "Nobody answered when we rang the bell twice, so we left the parcel with a neighbour."


def chain_of_edits():
    """Each like the next, the first not like the third."""
    texts = [SENTENCE]
    for old, new in [("bridge", "fridge"), ("river", "rifle"), ("repairs", "repaints"), ("spring", "sprint")]:
        texts.append(texts[-1].replace(old, new))
    rows = [(text,) for text in texts]
    near = [[similarities(a, b)[0] >= 0.8 for b in rows] for a in rows]
    assert all(near[i][i + 1] for i in range(4))
    assert not near[0][2]
    return rows


def test_exact_after_normalisation(tmp_path):
    found = search(tmp_path, [(SENTENCE,), (f"  {SENTENCE.upper()} !! ",), (OTHER,)])
    assert (found.row.tolist(), found.duplicate_of.tolist(), found.linked_to.tolist()) == ([1], [0], [0])
    assert (found.similarity.tolist(), found.exact.tolist(), found.kind.tolist()) == (
        [1.0],
        [True],
        ["duplicates"],
    )


def test_equal_hashes_of_unequal_texts_are_no_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(
        signatures, "_row_hashes", lambda texts, languages: np.zeros((len(texts[0]), 16), np.uint8)
    )
    rows = [(SENTENCE,), (OTHER,), (SENTENCE,), (SENTENCE,)]
    languages = ["en", "en", "en", "fr"]
    assert instead(search(tmp_path, rows, languages, rules=policy(duplicates={"near": False}))) == {2: 0}


def test_symbols_and_marks_are_content(tmp_path):
    assert instead(search(tmp_path / "a", [("5 < 7",), ("5 > 7",)])) == {}
    assert instead(search(tmp_path / "b", [("मैं",), ("मे",)])) == {}


def test_near_duplicate_is_verified_exactly(tmp_path):
    found = search(tmp_path / "a", [(SENTENCE,), (EDITED,)])
    (similarity,) = similarities((SENTENCE,), (EDITED,))
    assert 0.8 <= similarity < 0.95
    assert (instead(found), found.similarity.tolist(), found.exact.tolist()) == (
        {1: 0},
        [similarity],
        [False],
    )
    rules = policy(duplicates={"threshold": 0.95})
    assert instead(search(tmp_path / "b", [(SENTENCE,), (EDITED,)], rules=rules)) == {}


def test_equal_sets_of_unequal_texts_are_near_not_exact(tmp_path):
    rows = [("Kuna haki za kupiga kura.",), ("Hakuna haki za kupiga kura.",)]
    assert shingles(rows[0][0], 3) == shingles(rows[1][0], 3)
    found = search(tmp_path, rows)
    assert (instead(found), found.similarity.tolist(), found.exact.tolist()) == ({1: 0}, [1.0], [False])


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("由于风太大，今天早上开往岛上的渡轮取消了，乘客都很失望。", "渡轮", "渡船"),
        ("เพราะลมแรงมาก เรือข้ามฟากไปเกาะเช้านี้จึงถูกยกเลิก ผู้โดยสารผิดหวัง", "เช้านี้", "เช้านั้น"),
    ],
)
def test_chinese_and_thai(tmp_path, text, old, new):
    assert old in text
    assert instead(search(tmp_path, [(text,), (text.replace(old, new),)])) == {1: 0}


def test_switches(tmp_path):
    rows = [(SENTENCE,), (EDITED,), (SENTENCE,), (SENTENCE,)]
    dropped = {}
    for name, section in {"all": {}, "exact": {"near": False}, "off": {"enabled": False}}.items():
        rules = policy(duplicates=section)
        dropped[name] = instead(search(tmp_path / name, rows, rules=rules))
        others = [*rows, (OTHER,), (OTHER,)]
        found = search(tmp_path / f"{name}-leak", others, rules=rules, evaluation=[3])
        assert instead(found) == {0: 3, 1: 3, 2: 3} | ({} if name == "off" else {5: 4})
        assert found.kind.tolist()[:3] == ["leakage"] * 3
    assert dropped == {"all": {1: 0, 2: 0, 3: 0}, "exact": {2: 0, 3: 0}, "off": {}}
    off = policy(leakage={"enabled": False})
    assert instead(search(tmp_path / "leak-off", rows, rules=off, evaluation=[3])) == {1: 0, 2: 0}


def test_languages_are_apart(tmp_path):
    assert instead(search(tmp_path / "a", [(SENTENCE,), (EDITED,), (SENTENCE,)], ["en", "fr", "de"])) == {}
    assert instead(search(tmp_path / "b", [(SENTENCE,), (EDITED,), (SENTENCE,)], [None, "en", None])) == {
        2: 0
    }
    assert instead(search(tmp_path / "c", [(SENTENCE,), (SENTENCE,)], ["en", "fr"], evaluation=[0])) == {}


def test_dead_and_incomplete_rows_take_no_part(tmp_path):
    rows = [(SENTENCE,), (EDITED,), (None,), (SENTENCE,), (None,)]
    assert instead(search(tmp_path, rows, dead=[0])) == {3: 1}


def test_a_premise_with_several_hypotheses_is_kept(tmp_path):
    hypotheses = ["Kuna haki za kupiga kura.", "Hakuna haki za kupiga kura.", "Kura zinapigwa kila mwaka."]
    rows = [(SENTENCE, hypothesis) for hypothesis in hypotheses]
    assert instead(search(tmp_path / "a", rows)) == {}
    assert instead(search(tmp_path / "b", [*rows, rows[1]])) == {3: 1}
    leak = search(tmp_path / "c", [*rows, rows[1]], evaluation=[3])
    assert instead(leak) == {1: 3}


@pytest.mark.parametrize("translation", [False, True])
def test_every_column_must_reach_the_threshold(tmp_path, translation):
    hypothesis, other = (
        "People could not cross the bridge in winter.",
        "A new bridge was opened to the public.",
    )
    rows = [(SENTENCE, hypothesis), (EDITED, hypothesis), (EDITED, other), (OTHER, hypothesis)]
    assert instead(search(tmp_path, rows, translation=translation)) == {1: 0}


def test_alternative_translations_are_kept_and_edited_ones_are_not(tmp_path):
    german = "Die alte Brücke über den Fluss war bis zum Ende des Frühlings gesperrt."
    rows = [(SENTENCE, german), (SENTENCE, "Bis Ende Mai konnte niemand den Fluss dort überqueren.")]
    rows.append((SENTENCE, german.replace("gesperrt", "gesperrte")))
    languages = [("en", "de")] * 3
    assert instead(search(tmp_path, rows, languages, translation=True)) == {2: 0}


def test_a_chain_is_one_group_and_links_name_what_was_compared(tmp_path):
    chain = chain_of_edits()
    found = search(tmp_path, chain)
    assert instead(found) == {1: 0, 2: 0, 3: 0, 4: 0}
    for row, link, similarity in zip(found.row, found.linked_to, found.similarity, strict=True):
        others = [i for i in range(5) if i != row]
        assert similarity == similarities(chain[row], chain[link])[0]
        assert similarity == max(similarities(chain[row], chain[i])[0] for i in others)


def test_a_third_row_does_not_drop_a_hypothesis_of_the_representatives_premise(tmp_path):
    yes = "The people of both towns were able to cross the river there in winter."
    no = yes.replace("able", "unable")
    rows = [(SENTENCE, yes), (EDITED, yes), (SENTENCE, no)]
    found = search(tmp_path / "a", rows)
    assert (instead(found), found.linked_to.tolist()) == ({1: 0}, [0])
    # The link stays in the group, also if a row outside is more similar.
    between = (EDITED, no)
    assert min(similarities(between, rows[2])) > min(similarities(between, rows[0])) >= 0.8
    found = search(tmp_path / "link", [rows[0], between, rows[2]])
    assert (instead(found), found.linked_to.tolist()) == ({1: 0}, [0])
    # Verified against the representative itself, both go.
    assert instead(search(tmp_path / "b", [rows[1], rows[0], rows[2]])) == {1: 0, 2: 0}
    # Of what leaves the group the first row stands for what only it connects.
    beyond = (EDITED, no.replace("winter", "water"))
    near = [min(similarities(row, beyond)) >= 0.8 for row in rows]
    assert near == [False, False, True]
    assert instead(search(tmp_path / "c", [*rows, beyond])) == {1: 0, 3: 2}


def test_copies_follow_what_they_copy(tmp_path):
    rows = [(SENTENCE,), (EDITED,), (EDITED.upper(),), (OTHER,)]
    found = search(tmp_path / "a", rows)
    assert instead(found) == {1: 0, 2: 0}
    assert (found.linked_to.tolist(), found.exact.tolist(), found.similarity[1]) == (
        [0, 1],
        [False, True],
        1.0,
    )
    leak = search(tmp_path / "b", [*rows, (SENTENCE,)], evaluation=[4])
    assert (instead(leak), leak.exact.tolist()) == ({0: 4, 1: 4, 2: 4}, [True, False, False])
    assert leak.similarity[1] == leak.similarity[2] == similarities((SENTENCE,), (EDITED,))[0]


def test_leaks_go_before_groups_form(tmp_path):
    chain = chain_of_edits()
    rows = [*chain[1:4], chain[0], chain[0]]
    found = search(tmp_path, rows, evaluation=[3, 4])
    # Row 0 leaks; it can represent row 1 no more. Equal evaluation rows stay, and the first is named.
    assert instead(found) == {0: 3, 2: 1}
    assert found.kind.tolist() == ["leakage", "duplicates"]


def test_an_evaluation_row_counts_even_if_other_steps_object(tmp_path):
    assert instead(search(tmp_path, [(SENTENCE,), (EDITED,)], evaluation=[1], dead=[1])) == {0: 1}


def test_leakage_has_a_threshold_of_its_own(tmp_path):
    (similarity,) = similarities((SENTENCE,), (EDITED,))
    rows = [(SENTENCE,), (EDITED,), (SENTENCE,)]
    rules = policy(leakage={"threshold": similarity + 0.01})
    found = search(tmp_path / "a", rows, rules=rules, evaluation=[2])
    assert instead(found) == {0: 2}
    rules = policy(duplicates={"threshold": similarity + 0.01})
    assert instead(search(tmp_path / "b", rows, rules=rules, evaluation=[2])) == {0: 2, 1: 2}
    assert instead(search(tmp_path / "c", rows[:2], rules=rules)) == {}


def test_one_side_of_a_translation_leaks(tmp_path):
    german = "Die alte Brücke über den Fluss war bis zum Ende des Frühlings gesperrt."
    rows = [
        (SENTENCE, german),
        (EDITED, "Ganz anders."),
        (OTHER, german),
        (OTHER, "Auch anders."),
        ("Yes.", "Ja."),
    ]
    rows += [("Yes.", "Jawohl, so ist es gewesen."), ("Yes.", "Ja!"), (german, SENTENCE)]
    languages = [("en", "de")] * len(rows)
    languages[-1] = ("de", "en")
    options = {"translation": True, "evaluation": [0, 4]}
    found = search(tmp_path / "any", rows, languages, **options)
    assert instead(found) == {1: 0, 2: 0, 6: 4}
    assert found.exact.tolist() == [False, True, True]
    assert found.similarity.tolist() == [similarities((SENTENCE,), (EDITED,))[0], 1.0, 1.0]
    every = search(tmp_path / "all", rows, languages, rules=policy(leakage={"match": "all"}), **options)
    assert instead(every) == {6: 4}
    fewer = search(tmp_path / "few", rows, languages, rules=policy(leakage={"min_shingles": 1}), **options)
    assert instead(fewer) == {1: 0, 2: 0, 5: 4, 6: 4}


def test_short_sides_leak_together_only(tmp_path):
    german = "Die alte Brücke über den Fluss war bis zum Ende des Frühlings gesperrt."
    rows = [
        ("Come in, please!", "Kommt doch herein!"),
        (SENTENCE, "Ja."),
        ("Come in, pleases!", "Kommt doch hereina!"),
    ]
    rows += [
        ("Come in, pleases!", german),
        (EDITED, "Ja."),
        ("渡轮今天早上取消了乘客都很失望", "Nein."),
        ("渡轮今天早上取消", "Nein."),
    ]
    rows += [("渡轮今天早上取消了乘客都很失望", german), ("渡轮今天早上取消", german)]
    languages = [("en", "de")] * 5 + [("zh", "de")] * 4
    options = {"translation": True, "evaluation": [0, 1, 5, 6]}
    found = search(tmp_path, rows, languages, **options)
    # Fourteen shingles are enough where ideographs dominate, seven are not.
    assert instead(found) == {2: 0, 4: 1, 7: 5}
    # Of row 4 the side that is too short to count is equal.
    assert found.exact.tolist() == [False, False, True]


def test_the_most_similar_evaluation_row_is_named(tmp_path):
    rows = [(SENTENCE.replace("old", "odd"),), (EDITED,), (SENTENCE,)]
    found = search(tmp_path, rows, evaluation=[0, 2])
    assert (instead(found), found.similarity.tolist()) == ({1: 2}, similarities(rows[1], rows[2]))


def variants(generator, texts, count, edits):
    letters = "abcdefgh"
    result = []
    for _ in range(count):
        row = [list(generator.choice(column)) for column in texts]
        for text in row:
            for _ in range(generator.randrange(edits)):
                text[generator.randrange(len(text))] = generator.choice(letters)
        result.append(tuple("".join(text) for text in row))
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["text", "pair", "translation"])
def test_agrees_with_comparing_every_pair(tmp_path, monkeypatch, kind, seed):
    """Families of close variants, copies, shared premises, two languages, dead rows and evaluation rows."""
    monkeypatch.setattr(signatures, "_MISS", 1e-9)
    monkeypatch.setattr(verify, "MOST", 100)
    generator = random.Random(seed)
    texts = [
        [SENTENCE, OTHER],
        ["People could not cross the bridge in winter.", "No one was at home that day."],
    ]
    rows = variants(generator, texts[: 1 if kind == "text" else 2], 40, 4)
    rows += generator.choices(rows, k=10)
    if kind != "text":
        premises = generator.choices([row[0] for row in rows], k=20)
        rows += [(p, row[1]) for p, row in zip(premises, generator.choices(rows, k=20), strict=True)]
    generator.shuffle(rows)
    languages = generator.choices(["en", "sw"], [3, 1], k=len(rows))
    evaluation, dead = generator.sample(range(len(rows)), 6), generator.sample(range(len(rows)), 6)
    rules = policy(leakage={"match": "all"})
    found = search(
        tmp_path,
        rows,
        languages,
        rules=rules,
        evaluation=evaluation,
        dead=dead,
        translation=kind == "translation",
    )
    decisions = zip(found.row.tolist(), found.duplicate_of.tolist(), found.kind, strict=True)
    result = {row: (other, reason) for row, other, reason in decisions}
    truth = expected(rows, languages, evaluation=evaluation, dead=dead, pair=kind == "pair")
    assert result == truth
    assert {"leakage", "duplicates"} <= {reason for _, reason in truth.values()}
    assert len(truth) < len(rows) - len(evaluation) - len(dead)
    assert (np.diff(found.row) > 0).all()
    for row, link, exact in zip(found.row, found.linked_to, found.exact, strict=True):
        assert exact == (list(map(normalise, rows[row])) == list(map(normalise, rows[link])))
