import json
import re
import subprocess

import pytest
import torch

import hybrid_kernels as hk
from hybrid_kernels.benchmarking import machine


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a folder of its own, which `hybrid_kernels` is taken to be."""
    folder = tmp_path / "tree" / "hybrid_kernels"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.delenv(machine.COMMIT_VARIABLE, raising=False)
    monkeypatch.setattr(hk, "__file__", str(folder / "__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return folder


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_the_commit_and_the_digest_of_changes(package):
    git(package.parent, "init")
    (package.parent / "README.md").write_text("a")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "first")
    clean = machine.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (package.parent / "README.md").write_text("b")  # it does not run
    (package / "untracked.txt").write_text("")
    assert machine.commit() == clean
    digests = set()
    for text in ("x = 1\n", "x = 2\n"):
        (package / "__init__.py").write_text(text)
        digests.add(machine.commit())
    assert len(digests) == 2
    assert all(re.fullmatch(rf"{clean}\+changes\.[0-9a-f]{{8}}", digest) for digest in digests)


def test_no_commit_outside_a_repository_or_where_the_package_is_not_tracked(package):
    assert machine.commit() is None
    git(package.parent, "init")
    (package.parent / "other.py").write_text("")
    git(package.parent, "add", "other.py")
    git(package.parent, "commit", "-m", "another project's")
    assert machine.commit() is None


def test_no_commit_without_git_but_the_named_one(package, monkeypatch):
    git(package.parent, "init")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "first")
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None
    monkeypatch.setenv(machine.COMMIT_VARIABLE, "abc1234")
    assert machine.commit() == "abc1234"


def test_machine_and_versions_are_the_same_each_time_and_json():
    found = [machine.machine(torch.device("cpu")), machine.versions()]
    assert found == json.loads(json.dumps(found)) == [machine.machine(), machine.versions()]
    assert list(found[0]) == ["processor", "cores", "threads", "gpu", "platform"]
    assert set(found[1]) == {"hybrid_kernels", "torch", "triton", "peft", "transformers", "python"}
    assert found[1]["torch"] == torch.__version__ and found[1]["hybrid_kernels"] == hk.__version__
