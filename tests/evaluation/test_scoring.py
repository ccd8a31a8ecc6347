import numpy as np
import pytest
import torch

from hybrid_kernels.evaluation.scoring import (
    Encoded,
    _log_likelihood,
    completion_log_probabilities,
    encode,
    prefill,
)
from tests.evaluation.language_models import (
    causal_tokenizer,
    encoder_decoder_tokenizer,
    gemma,
    llama,
    plain_log_probability,
    t5,
)

MODELS = {"llama": llama, "gemma": gemma, "gemma, wide window": lambda: gemma(64), "t5": t5}


def draw_rows(shared, seed=0):
    """Rows of unequal prompts after a shared beginning, with three completions of unequal lengths."""
    generator = np.random.default_rng(seed)

    def ids(length):
        return generator.integers(4, 700, length).tolist()

    beginning = ids(shared)
    return [Encoded(beginning + ids(length), [ids(1), ids(4), ids(2)]) for length in (3, 9, 1, 5, 14, 2, 7)]


@pytest.mark.parametrize("shared", [1, 40])
@pytest.mark.parametrize("name", MODELS)
def test_batches_caches_and_padding_change_nothing(name, shared, one_thread):
    model = MODELS[name]()
    rows = draw_rows(shared)
    plain = np.array(
        [[plain_log_probability(model, row.prompt, ids) for ids in row.completions] for row in rows]
    )
    for batch_size, cache in ((1, True), (3, True), (7, True), (3, False)):
        values, tokens = completion_log_probabilities(
            model, rows, pad_token_id=0, batch_size=batch_size, cache=cache
        )
        np.testing.assert_allclose(values, plain, rtol=1e-10, err_msg=f"{batch_size}, {cache}")
    assert tokens.tolist() == [[1, 4, 2]] * 7


def test_one_token_completions_need_the_prompt_alone(one_thread):
    model = llama()
    rows = [Encoded(row.prompt, [[5], [6]]) for row in draw_rows(4)]
    widths = []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: widths.append(out.shape[:2])
    )
    values, _ = completion_log_probabilities(model, rows, pad_token_id=0, batch_size=7)
    hook.remove()
    assert widths == [(7, 18)]
    assert values[0, 1] == pytest.approx(plain_log_probability(model, rows[0].prompt, [6]), rel=1e-10)


def test_a_shared_beginning_is_computed_once(one_thread):
    model, prompts = llama(), [row.prompt for row in draw_rows(40)]
    widths = []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: widths.append(out.shape[:2])
    )
    state, ids, mask = prefill(prompts, model, 0)
    hook.remove()
    assert widths == [(1, 40)]
    assert state.get_seq_length() == 40 and ids.shape == (7, 14) and mask.shape == (7, 54)
    # A window that has let go of the beginning cannot hand it out.
    assert prefill(prompts, gemma(), 0)[0].get_seq_length() == 0
    assert prefill(prompts, gemma(64), 0)[0].get_seq_length() == 40


def test_adapted_models_are_scored_too(one_thread):
    import copy

    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        copy.deepcopy(llama()), LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    )
    rows = draw_rows(40)
    values, _ = completion_log_probabilities(adapted, rows, pad_token_id=0, batch_size=7)
    assert values[3, 1] == pytest.approx(
        plain_log_probability(adapted, rows[3].prompt, rows[3].completions[1]), rel=1e-10
    )
    plain, _ = completion_log_probabilities(llama(), rows, pad_token_id=0)
    assert np.abs(values - plain).max() > 1e-3


def test_tokens_that_merge_across_the_border_belong_to_the_completions(one_thread):
    tokenizer, model = causal_tokenizer(), llama()
    prompt, completions = "Question: cat\nAnswer:", [" Yes", " No", " Maybe"]
    encoded = encode(tokenizer, prompt, completions)
    alone = tokenizer(prompt)["input_ids"]
    assert len(encoded.prompt) < len(alone), "this tokenizer is here because it merges across the border"
    for completion, ids in zip(completions, encoded.completions, strict=True):
        assert encoded.prompt + ids == tokenizer(prompt + completion)["input_ids"]
    # Differences between completions are those of the whole texts.
    values, _ = completion_log_probabilities(model, [encoded], pad_token_id=0)
    whole = [
        plain_log_probability(model, [2], tokenizer(prompt + completion)["input_ids"][1:])
        for completion in completions
    ]
    np.testing.assert_allclose(np.diff(values[0]), np.diff(whole), rtol=1e-9)


def test_an_eos_at_the_end_is_no_part_of_prompt_or_completion():
    tokenizer = encoder_decoder_tokenizer()
    encoded = encode(tokenizer, "German: cat\nEnglish:", [" mat"])
    assert 3 not in encoded.prompt + encoded.completions[0]
    apart = encode(tokenizer, "German: cat", [" mat"], encoder_decoder=True)
    assert apart.prompt == tokenizer("German: cat")["input_ids"] and apart.prompt[-1] == 3
    assert apart.completions == [tokenizer("mat")["input_ids"][:-1]]


def test_bad_input_is_named():
    tokenizer = causal_tokenizer()
    with pytest.raises(ValueError, match="completions must be texts that are not blank, got \\[' '\\]"):
        encode(tokenizer, "a", [" "])
    with pytest.raises(ValueError, match="prompt '' has no token"):
        encode(encoder_decoder_tokenizer(), "", ["cat"])
    rows = [Encoded([2], [[5]]), Encoded([2], [[5], [6]])]
    with pytest.raises(ValueError, match=r"same number of completions each, found \[1, 2\]"):
        completion_log_probabilities(llama(), rows, pad_token_id=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        completion_log_probabilities(llama(), rows[:1], pad_token_id=0, batch_size=0)


def test_the_softmax_of_half_precision_logits_is_in_single():
    torch.manual_seed(0)
    logits, ids = torch.randn(5, 700).mul(4).bfloat16(), [3, 1, 699, 0, 42]
    exact = logits.double().log_softmax(1)[range(5), ids].sum().item()
    assert _log_likelihood(logits, ids) == pytest.approx(exact, rel=1e-6)
