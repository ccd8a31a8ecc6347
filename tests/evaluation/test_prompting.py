import numpy as np
import pytest

from hybrid_kernels.evaluation.prompting import CONTENT_FREE, PromptScores, encode_row, score_prompts
from hybrid_kernels.evaluation.prompts import NLI_PROMPTS, Prompt, prompt_for
from tests.evaluation.language_models import (
    causal_tokenizer,
    encoder_decoder_tokenizer,
    gemma,
    llama,
    plain_log_probability,
    t5,
)

ROWS = [
    {"language": language, "premise": premise, "hypothesis": hypothesis}
    for language, premise, hypothesis in [
        ("en", "The cat sat on the mat.", "A cat sat."),
        ("de", "Die Katze saß auf der Matte.", "Eine Katze saß."),
        ("en", "The {cat} said {premise}.", "No {hypothesis}."),
        ("fr", "Le chat dort.", "Il ne dort pas."),
    ]
]


def test_every_language_has_a_prompt_with_three_verbalizers_that_ends_where_the_answer_begins():
    assert sorted(NLI_PROMPTS) == [
        "ar",
        "bg",
        "de",
        "el",
        "en",
        "es",
        "fr",
        "hi",
        "ru",
        "sw",
        "th",
        "tr",
        "ur",
        "vi",
        "zh",
    ]
    for language, prompt in NLI_PROMPTS.items():
        assert len(prompt.verbalizers) == 3 and not prompt.template.endswith(" ")
        assert all(one.startswith(" ") for one in prompt.verbalizers) == (language != "zh")
        # The three answers are named in the question.
        question = prompt.template.split("\n")[2].lower()
        assert all(one.strip().lower() in question for one in prompt.verbalizers), language


def test_fields_are_filled_once_and_as_they_are():
    assert Prompt("P {premise} H {hypothesis}:", (" a", " b")).fill("{hypothesis}", "{premise}{x}") == (
        "P {hypothesis} H {premise}{x}:"
    )
    assert Prompt("{hypothesis}? {premise}", ("a", "b")).fill("p", "h") == "h? p"


@pytest.mark.parametrize("name", ["llama", "gemma", "t5"])
def test_log_probabilities_are_those_of_each_row_alone(name, one_thread):
    model = {"llama": llama, "gemma": gemma, "t5": t5}[name]()
    tokenizer = encoder_decoder_tokenizer() if name == "t5" else causal_tokenizer()
    scores = score_prompts(model, tokenizer, ROWS, batch_size=3)
    for i, row in enumerate(ROWS):
        encoded = encode_row(tokenizer, NLI_PROMPTS[row["language"]], row, 256, name == "t5")
        plain = [plain_log_probability(model, encoded.prompt, ids) for ids in encoded.completions]
        np.testing.assert_allclose(scores.log_probabilities[i], plain, rtol=1e-10)
    assert scores.log_probabilities.shape == scores.tokens.shape == (4, 3)
    assert sorted(scores.content_free) == ["de", "en", "fr"]
    # The content-free rows are prompts like the others.
    free = {"language": "de", "premise": CONTENT_FREE[1], "hypothesis": CONTENT_FREE[1]}
    again = score_prompts(model, tokenizer, [free])
    np.testing.assert_allclose(again.log_probabilities[0], scores.content_free["de"][0][1], rtol=1e-10)


def test_probabilities_follow_the_formulas():
    # Two classes, of one and of two tokens.
    scores = PromptScores(
        np.log([[0.2, 0.09], [0.5, 0.04]]),
        np.array([[1, 2], [1, 2]]),
        ["en", "de"],
        {
            "en": (np.log([[0.3, 0.36], [0.1, 0.01]]), np.array([[1, 2], [1, 2]])),
            "de": (np.log([[0.5, 0.25], [0.5, 0.25]]), np.array([[1, 2], [1, 2]])),
        },
    )
    np.testing.assert_allclose(
        scores.probabilities(length_normalized=False), [[0.2 / 0.29, 0.09 / 0.29], [0.5 / 0.54, 0.04 / 0.54]]
    )
    np.testing.assert_allclose(scores.probabilities(), [[0.4, 0.6], [5 / 7, 2 / 7]])
    # en: content-free (1/3, 2/3) and (1/2, 1/2), mean (5/12, 7/12); de: even, so nothing changes.
    odds = np.array([0.4 / (5 / 12), 0.6 / (7 / 12)])
    np.testing.assert_allclose(scores.probabilities(calibrated=True), [odds / odds.sum(), [5 / 7, 2 / 7]])


def test_english_prompts_serve_every_language(one_thread):
    row = ROWS[1] | {"language": "xx"}
    as_english = score_prompts(llama(), causal_tokenizer(), [ROWS[1] | {"language": "en"}])
    scores = score_prompts(llama(), causal_tokenizer(), [row], prompts="en")
    np.testing.assert_array_equal(scores.log_probabilities, as_english.log_probabilities)
    with pytest.raises(ValueError, match="no prompt in language 'xx', only in ar, bg"):
        score_prompts(llama(), causal_tokenizer(), [row])
    with pytest.raises(ValueError, match="prompts must be 'own', 'en' or a table by language, got 'english'"):
        prompt_for("de", "english")


def test_a_long_premise_gives_way():
    tokenizer, prompt = causal_tokenizer(), NLI_PROMPTS["en"]
    row = {"language": "en", "premise": "The cat sat on the mat. " * 40, "hypothesis": "A cat sat."}
    whole = encode_row(tokenizer, prompt, row, 10**6)
    for max_length in (60, 61, 75):
        encoded = encode_row(tokenizer, prompt, row, max_length)
        length = len(encoded.prompt) + max(map(len, encoded.completions))
        assert max_length - 6 <= length <= max_length < len(whole.prompt)
        text = tokenizer.decode(encoded.prompt).replace(" ", "")
        assert "Thecatsat" in text and "Acatsat." in text and "maybeorno?" in text
    with pytest.raises(
        ValueError, match=r"max_length 20 is too short for the 'en' prompt .* needs \d+ tokens"
    ):
        encode_row(tokenizer, prompt, row, 20)


def test_bad_prompts_are_named():
    with pytest.raises(ValueError, match=r"template must have the field \{hypothesis\}"):
        Prompt("{premise}", ("a", "b"))
    with pytest.raises(ValueError, match="template must have no other field, and other braces doubled"):
        Prompt("{premise}{hypothesis}{label}", ("a", "b"))
    with pytest.raises(ValueError, match="verbalizers must be different"):
        Prompt("{premise}{hypothesis}", ("a", "a"))
    with pytest.raises(ValueError, match="rows is empty"):
        score_prompts(llama(), causal_tokenizer(), [])
