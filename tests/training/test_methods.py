"""Every method on a tiny BERT with a new head and a tiny Llama: start, training, saving, acceleration, diagnostics."""

import json
import os
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from pydantic import TypeAdapter

from hybrid_kernels.training import methods
from hybrid_kernels.training.diagnostics import branch_gradient_norms, orthogonality_defect
from hybrid_kernels.training.method_config import AnyMethod, Method, hybrid_ablations
from hybrid_kernels.training.model_card import model_card

TARGETS = {"bert": ["query", "value", "intermediate.dense"], "llama": ["q_proj", "v_proj", "down_proj"]}
UNITARY = {"bert": ["query"], "llama": ["q_proj"]}
HYBRID = {"method": "hybrid", "r": 4, "reflections": 4, "alpha": 4.0, "orthogonality_weight": 1e-3}
SETTINGS = {
    "full": {"method": "full"},
    "full-frozen": {"method": "full", "embeddings": False},
    "lora": {"method": "lora", "r": 4, "alpha": 8},
    "lora_ga": {"method": "lora_ga", "r": 4, "alpha": 8.0},
    "hra": {"method": "hra", "r": 4},
    "oft": {"method": "oft", "block_size": 8},
    "boft": {"method": "boft", "block_size": 4, "factors": 2},
    "urnn": {"method": "urnn"},
    "hybrid": HYBRID,
    "hybrid-unitary": HYBRID | {"unitary_modules": "by kind", "unitary_block_size": 8},
    "hybrid-no-reflections": HYBRID | {"reflections": 0},
    "hybrid-no-low-rank": HYBRID | {"r": 0},
    "hybrid-learned": HYBRID | {"mixing": "learned"},
}
STOCK = ["lora", "hra", "oft", "boft"]


def make(name: str, kind: str, **changes) -> AnyMethod:
    settings = SETTINGS[name] | changes
    if settings["method"] != "full":
        settings = settings | {"target_modules": TARGETS[kind]}
    if settings.get("unitary_modules") == "by kind":
        settings = settings | {"unitary_modules": UNITARY[kind]}
    return TypeAdapter(Method).validate_python(settings)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(params=["bert", "llama"])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tiny_model, tiny_llama):
    return str({"bert": tiny_model, "llama": tiny_llama}[kind])


@pytest.fixture
def load(kind, folder):
    """() -> (a fresh base model in evaluation, its head)."""

    def fresh():
        if kind == "bert":
            model, head = methods.load_classifier(folder, 0, seed=0)
        else:
            model, head = methods.load_decoder(folder), []
        return model.eval(), head

    return fresh


@pytest.fixture
def task(kind):
    return {"bert": "classification", "llama": "causal_lm"}[kind]


@pytest.fixture
def batch(kind):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 24, (6, 9), generator=generator)
    labels = torch.randint(0, 3, (6,), generator=generator) if kind == "bert" else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def train(model, method, batch, steps=1, rate=1e-2):
    """A few steps without dropout; returns the losses."""
    weight, losses = methods.orthogonality_weight(method), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        losses.append(loss.item())
        if weight:
            from hybrid_kernels.adapters import orthogonality_penalty

            loss = loss + weight * orthogonality_penalty(model)
        loss.backward()
        optimizer.step()
    losses.append(model(**batch).loss.item())
    return losses


@pytest.mark.parametrize("name", SETTINGS)
def test_starts_at_the_base_and_one_step_trains_what_it_should(name, kind, load, task, batch):
    base, head = load()
    base = base.double()
    before = logits(base, batch)
    frozen = {n: p.clone() for n, p in base.named_parameters()}
    method = make(name, kind)
    model = methods.add_adapter(base, head, method, 0, task).eval()
    methods.initialize(model, method, [batch])
    torch.testing.assert_close(logits(model, batch), before, rtol=1e-11, atol=1e-11)

    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    first, second = train(model, method, batch)
    assert second < first
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None for g in gradients.values())
    moved = {
        n: not torch.equal(p, start[n]) for n, p in model.named_parameters() if p.requires_grad and p.numel()
    }
    # LoRA's A has no gradient while B is zero, nor λ while both branches are.
    still = {n for n, changed in moved.items() if not changed}
    assert all("lora_A" in n or "mixing_logit" in n for n in still), still
    if method.method == "full":
        embeddings = (
            "bert.embeddings.word_embeddings.weight" if kind == "bert" else "model.embed_tokens.weight"
        )
        assert (embeddings in start) == method.embeddings
        assert set(start) | {embeddings} == set(frozen)
    else:
        # Nothing of the pretrained model has moved; a head is trained as a copy.
        for n, p in model.get_base_model().named_parameters():
            key = n.replace("base_layer.", "").replace("original_module.", "")
            if key in frozen and not p.requires_grad:
                assert torch.equal(p, frozen[key]), n
        heads = {n for n in start if "modules_to_save" in n}
        assert bool(heads) == (kind == "bert")


@pytest.mark.parametrize("name", SETTINGS)
def test_saved_and_loaded_outputs_are_equal(name, kind, folder, load, task, batch, tmp_path):
    base, head = load()
    method = make(name, kind)
    model = methods.add_adapter(base, head, method, 0, task).eval()
    methods.initialize(model, method, [batch])
    train(model, method, batch, 2)
    card = model_card(base_model=folder, method=method, task=task, languages=["de"], data="tiny")
    methods.save(model, tmp_path, card)
    # Another seed: everything that was trained has to come from the folder, the head too.
    loaded = methods.load_trained(tmp_path, folder, 0, seed=99, task=task)
    assert torch.equal(logits(loaded.eval(), batch), logits(model, batch))
    assert ModelCard.load(tmp_path / "README.md").data.license == "unknown"
    weights = list(tmp_path.glob("*.safetensors"))
    assert len(weights) == 1
    if name == "full-frozen":
        frozen = base.get_input_embeddings().weight.numel()
        whole = 4 * sum(p.numel() for p in base.parameters())
        assert whole - 4 * frozen <= weights[0].stat().st_size < whole - 4 * frozen + 8192


@pytest.mark.parametrize("name", STOCK)
def test_accelerated_training_is_the_stock_training(name, kind, load, task, batch):
    losses = []
    for accelerate in (False, True):
        base, head = load()
        method = make(name, kind, accelerate=accelerate)
        model = methods.add_adapter(base.double(), head, method, 0, task).double().eval()
        accelerated = [m for m in model.modules() if type(m).__name__.startswith("Accelerated")]
        assert len(accelerated) == (6 if accelerate else 0)
        losses.append(train(model, method, batch, 4))
    assert losses[0][-1] < losses[0][0] - 0.01
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-6, atol=0)
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-10


def test_boft_keeps_its_butterfly_factors(load, task, kind):
    """Without its CUDA extension stock PEFT would set them to 1."""
    base, head = load()
    model = methods.add_adapter(base, head, make("boft", kind), 0, task)
    shapes = {p.shape[0] for n, p in model.named_parameters() if "boft_R" in n}
    assert shapes == {2}


def test_sizes_that_do_not_fit_are_errors(load, task, kind):
    base, head = load()
    with pytest.raises(ValueError, match=r"method 'oft': Invalid `oft_block_size` \(7\)"):
        methods.add_adapter(base, head, make("oft", kind, block_size=7), 0, task)
    base, head = load()
    with pytest.raises(
        ValueError, match="method 'lora': r is null; give a number, or fit the method to a budget"
    ):
        methods.add_adapter(base, head, make("lora", kind, r=None), 0, task)


def test_damaged_or_foreign_full_checkpoint(tiny_model, tiny_llama, tmp_path):
    method = TypeAdapter(Method).validate_python({"method": "full"})
    model = methods.add_adapter(methods.load_decoder(str(tiny_llama)), [], method, 0, "causal_lm")
    card = model_card(base_model="tiny", method=method, task="causal_lm", languages=["en"], data="none")
    methods.save(model, tmp_path, card)
    with pytest.raises(ValueError, match=r"does not load onto .*it lacks \d+ of \d+ parameters"):
        methods.load_trained(tmp_path, str(tiny_model), 0, 0)
    file = tmp_path / methods.TRAINED
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        methods.load_trained(tmp_path, str(tiny_llama), 0, 0, "causal_lm")


@pytest.mark.parametrize(
    "name", ["hra", "oft", "boft", "urnn", "hybrid", "hybrid-unitary", "hybrid-no-low-rank"]
)
def test_orthogonality_defect_is_that_of_the_matrix(name, kind, load, task, batch):
    base, head = load()
    model = methods.add_adapter(base, head, make(name, kind), 0, task).eval()
    found = orthogonality_defect(model)
    assert len(found) == 6
    assert all(value < 1e-5 for value in found.values()), found  # rounding in float32
    torch.manual_seed(0)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad and any(part in n for part in ("_u", "_R", "skew", "urnn")):
                p.add_(0.3 * torch.randn_like(p))
    moved = orthogonality_defect(model)
    assert all(0 < value < 1e-4 for value in moved.values()), moved


def test_orthogonality_defect_sees_what_is_not_orthogonal(monkeypatch, load, task, kind):
    """Of H with t off by 1 %: ‖HᵀH − I‖_F from the factors equals that of the matrix."""
    from hybrid_kernels import functional

    base, head = load()
    model = methods.add_adapter(base, head, make("hra", kind), 0, task)
    exact = functional.householder_factors
    torch.manual_seed(0)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "hra_u" in n:
                p.copy_(torch.randn_like(p))
    monkeypatch.setattr(functional, "householder_factors", lambda u: (exact(u)[0], 1.01 * exact(u)[1]))
    for name, value in orthogonality_defect(model).items():
        v, t = (
            f.double() for f in functional.householder_factors(model.get_submodule(name).hra_u["default"])
        )
        eye = torch.eye(len(v), dtype=v.dtype)
        h = eye - v @ t @ v.mT
        assert value == pytest.approx(torch.linalg.matrix_norm(h.mT @ h - eye).item(), rel=1e-6)
        assert value > 1e-3


def test_models_without_structure_have_no_defect(load, task, kind):
    base, head = load()
    assert orthogonality_defect(methods.add_adapter(base, head, make("lora", kind), 0, task)) == {}


BRANCHES = {
    "full": {"base"},
    "lora": {"low_rank"},
    "hra": {"reflections"},
    "oft": {"unitary"},
    "boft": {"unitary", "scale"},
    "urnn": {"unitary"},
    "hybrid-unitary": {"low_rank", "reflections", "unitary"},
    "hybrid-no-reflections": {"low_rank"},
    "hybrid-learned": {"low_rank", "reflections", "mixing"},
}


@pytest.mark.parametrize("name", BRANCHES)
def test_gradient_norms_by_branch(name, load, task, kind, batch):
    base, head = load()
    method = make(name, kind)
    model = methods.add_adapter(base, head, method, 0, task)
    assert branch_gradient_norms(model) == {}
    model(**batch).loss.backward()
    found = branch_gradient_norms(model)
    assert set(found) == BRANCHES[name] | ({"head"} if kind == "bert" else set())
    whole = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
    assert sum(value**2 for value in found.values()) == pytest.approx(whole.item(), rel=1e-5)


def test_ablations_lack_one_thing_each_and_are_told_apart():
    whole = make("hybrid-unitary", "bert")
    found = hybrid_ablations(whole)
    assert [one.name.removeprefix("hybrid-") for one in found] == [
        "no-alignment",
        "fixed-mixing",
        "learned-mixing",
        "no-reflections",
        "no-low-rank",
        "no-regulariser",
        "no-unitary",
    ]
    assert len({one.label for one in [whole, *found]}) == 8
    reflections = found[3]
    assert (reflections.r, reflections.reflections, reflections.orthogonality_weight) == (4, 0, 0.0)
    assert (found[4].r, found[4].reflections) == (0, 4)
    # What is lacking anyway is no ablation.
    plain = make("hybrid", "bert", mixing="fixed", gradient_aligned=False, orthogonality_weight=0.0)
    assert [one.name for one in hybrid_ablations(plain)] == [
        "hybrid-learned-mixing",
        "hybrid-no-reflections",
        "hybrid-no-low-rank",
    ]


def test_labels_and_backends_tell_methods_apart():
    found = [make(name, "bert") for name in SETTINGS] + [
        make(name, "bert", accelerate=True) for name in STOCK
    ]
    assert len({method.label for method in found}) == len(found)
    assert {m.method: m.backend for m in found[:9]} == {
        "full": "transformers",
        "lora": "peft",
        "lora_ga": "hybrid-kernels",
        "hra": "peft",
        "oft": "peft",
        "boft": "peft",
        "urnn": "hybrid-kernels",
        "hybrid": "hybrid-kernels",
    }
    assert {method.backend for method in found[-4:]} == {"hybrid-kernels"}


def test_model_card_says_what_is_known(tmp_path):
    method = make("lora", "bert")
    card = model_card(
        base_model="some/model",
        method=method,
        task="classification",
        languages=["sw", "en"],
        data="XNLI, 32 rows a language",
        governance={"rows": 1200, "kept": 1100, "by_step": {"language": {"rejected": 100}}},
        metrics={"accuracy": 0.62345},
        licence="mit",
        trainable_parameters=12345,
    )
    card.save(tmp_path / "README.md")
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.base_model == "some/model" and read.data.license == "mit"
    assert read.data.language == ["en", "sw"] and read.data.pipeline_tag == "text-classification"
    for said in (
        "LoRA r = 4",
        "12,345",
        "1,100 of 1,200 rows",
        "| language | 100 |",
        "| accuracy | 0.6234 |",
        "| alpha | 8 |",
    ):
        assert said in read.text, said
    assert json.loads(json.dumps(read.data.to_dict()))["library_name"] == "peft"
    with pytest.raises(ValueError, match="task is 'nli'; it may be one of 'classification', 'causal_lm'"):
        model_card(base_model="m", method=method, task="nli", languages=["en"], data="d")


def test_a_model_is_known_by_its_content(tiny_model, tmp_path):
    """Wherever its folder is and however old its files are."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy, copy_function=shutil.copyfile)
    before = methods.model_fingerprint(str(copy))
    assert before == methods.model_fingerprint(str(tiny_model))
    weights = copy / "model.safetensors"
    stamp, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert methods.model_fingerprint(str(copy)) != before


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert methods.model_fingerprint("some/model") == ["some/model", None]
    cached = tmp_path / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        (cached / "refs" / "main").write_text(commit)
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "config.json").write_text("{}")
        assert methods.model_fingerprint("some/model") == ["some/model", commit]
