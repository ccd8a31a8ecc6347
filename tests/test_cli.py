import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybrid_kernels import cli
from tests.training.support import tiny_data, tiny_model, values, write_config  # noqa: F401


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom hybrid_kernels.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'transformers', 'peft', 'datasets', 'matplotlib', 'pydantic', 'sklearn'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("run", "train", "evaluate", "report", "govern", "info", "bench", "export"):
        assert name in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_bench_tune(command, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("HYBRID_KERNELS_CACHE", str(tmp_path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = ["bench", "tune", "--device", device, "--shapes", "24x32x48", "--rank", "4"]
    code, out, err = command(*arguments, "--dtype", "float32", "--limit", "0")
    assert code == 0, err
    assert "24x32x48 R=4  forward: " in out
    if device == "cpu":
        assert "the Cayley transform is left out: " in out
    (device_rows,) = json.loads((tmp_path / "selection.json").read_text()).values()
    assert {row["operation"] for row in device_rows["rows"]} >= {"forward", "low_rank_linear"}
    blocked = tmp_path / "file"
    blocked.touch()
    code, _, err = command(*arguments, "--output", str(blocked / "selection.json"))
    assert code == 2 and str(blocked) in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "--shapes", "3x4"], "--shapes has '3x4'; each must be MxKxN"),
        (["tune", "--shapes", "3x4x0"], "--shapes has '3x4x0'"),
        (["tune", "--dtype", "int8"], "--dtype is 'int8'; it may be one of 'bfloat16'"),
        (["tune", "--rank", "300"], "--rank is 300; it must lie between 1 and 256"),
    ],
)
def test_bench_tune_says_what_is_wrong(arguments, message, command):
    code, _, err = command("bench", *arguments)
    assert code == 2 and message in err


def test_bench_tune_without_a_gpu_says_so(command):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, err = command("bench", "tune")
    assert code == 2 and "nothing to tune here: --device is 'cuda', and torch sees no GPU" in err


def test_train_evaluate_report(command, values, write_config):  # noqa: F811
    path = str(write_config(values))
    folder = values["output"]
    code, out, _ = command("train", path)
    assert code == 0 and "LoRA r = 4" in out and "48 rows to train on, 24 to evaluate on" in out
    assert not (Path(folder) / "report.html").exists()
    code, out, _ = command("train", path)
    assert code == 0 and "LoRA r = 4, seed 0: done before" in out
    code, out, _ = command("evaluate", folder)
    assert code == 0 and "macro F1" in out
    code, out, _ = command("report", folder)
    assert code == 0 and (Path(folder) / "report.html").is_file()
    (weights,) = Path(folder).rglob("adapter/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-50])
    code, _, err = command("evaluate", folder)
    assert code == 2 and "does not load onto" in err and "Traceback" not in err


def test_dry_run_says_what_is_to_do(command, values, write_config):  # noqa: F811
    values["training"] |= {"steps": None, "epochs": 1.5}
    values["training"]["seeds"] = [0, 1]
    path, folder = str(write_config(values)), Path(values["output"])
    code, out, _ = command("run", path, "--dry-run")
    # One and a half epochs of 48 rows in batches; two parts of 24 rows at most.
    steps = math.ceil(1.5 * math.ceil(48 / values["training"]["batch_size"]))
    assert code == 0 and re.search(rf"LoRA r = 4 +2 +0 +{2 * steps} +48\b", out)
    assert not (folder / "cells").exists() and (folder / "data" / "train.jsonl").is_file()
    assert command("train", path, "--seed", "0")[0] == 0
    (trained,) = folder.rglob("trained.json")
    assert len(json.loads(trained.read_text())["result"]["history"]) == steps
    code, out, _ = command("run", path, "--dry-run")
    assert code == 0 and re.search(rf"LoRA r = 4 +2 +1 +{steps} +24\b", out)


def test_a_dry_run_sees_target_modules_that_match_nothing(command, values, write_config):  # noqa: F811
    values["methods"][0]["target_modules"] = ["nosuch"]
    code, _, err = command("run", str(write_config(values)), "--dry-run")
    assert code == 2 and "method 'lora': No modules were targeted" in err


def test_overrides(command, values, write_config, tmp_path):  # noqa: F811
    path = str(write_config(values))
    assert command("train", path, "--output", str(tmp_path / "other"), "--seed", "5")[0] == 0
    assert (tmp_path / "other" / "cells" / "lora.seed-5.shots-all.governance-none" / "adapter").is_dir()
    code, _, err = command("train", path, "--data", str(tmp_path / "absent"))
    assert code == 2 and "no such folder" in err
    code, _, err = command("train", path, "--model", str(tmp_path / "absent"))
    assert code == 2 and "model folder" in err


def test_user_errors_are_one_message(command, values, write_config, tmp_path):  # noqa: F811
    values["training"]["bach_size"] = 4
    path = str(write_config(values))
    code, _, err = command("run", path)
    assert code == 2
    assert err.startswith("error: ") and "training.bach_size: unknown key; did you mean 'batch_size'?" in err
    assert "Traceback" not in err
    with pytest.raises(ValueError, match="bach_size"):
        cli.main(["--debug", "run", path])
    policy = tmp_path / "policy.yaml"
    policy.write_text("quality: {enabled: true}\nduplicates: {enabled: false}\n")
    for arguments, message in (
        (["run", str(tmp_path / "absent.yaml")], "no configuration file"),
        (["run", str(policy)], "policy.yaml is a policy of `hybrid-kernels govern --policy`, not the config"),
        (["run", path, "--demo"], "give either --demo or a configuration"),
        (["evaluate", str(tmp_path / "nothing")], "is no folder of a run"),
        (
            ["report", str(tmp_path / "nothing")],
            "has no results.json; `hybrid-kernels run` or `train` writes it at",
        ),
        (
            ["govern", str(tmp_path / "absent.jsonl"), "--languages", "en", "--out", str(tmp_path)],
            "no such file",
        ),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and message in err, err
    assert command("walk")[0] == 2


def test_missing_libraries_are_named_with_their_extra(command, monkeypatch):
    import hybrid_kernels

    monkeypatch.setitem(sys.modules, "hybrid_kernels.training.config", None)
    code, _, err = command("run", "demo")
    assert code == 2 and "pip install 'hybrid-kernels[study]'" in err
    monkeypatch.setitem(sys.modules, "aenum", None)
    for name in [name for name in sys.modules if name.startswith("hybrid_kernels.adapters")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(hybrid_kernels, "adapters", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package 'aenum'.*hybrid-kernels\[peft\]"):
        _ = hybrid_kernels.adapters


def test_interrupt(command, values, write_config, monkeypatch):  # noqa: F811
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hybrid_kernels.training.trainer.predict", interrupt)
    code, _, err = command("train", str(write_config(values)))
    assert code == 130 and "run the same command again" in err
