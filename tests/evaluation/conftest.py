"""Runs of synthetic predictions, made once; tests read them, and copy what they change."""

import pytest

from hybrid_kernels.evaluation.tables import load_study, quality
from tests.evaluation.runs import make_run, make_translation_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """Three methods, three seeds, two numbers of shots, a governance ablation, two recipes, a dev part."""
    folder = tmp_path_factory.mktemp("study") / "run"
    make_run(folder)
    return folder


@pytest.fixture(scope="session")
def translation_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "translation"
    make_translation_run(folder)
    return folder


@pytest.fixture(scope="session")
def setting(run_folder):
    (only,) = load_study([run_folder])
    return only


@pytest.fixture(scope="session")
def found(setting):
    return quality.main_quality(setting)
