"""The manifest of a result: what it was made of, by what, and what came out of it, so that it can be made again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hybrid_kernels._files import write_file
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.policy import GovernancePolicy

SCHEMA = 1
MANIFEST, SUMMARY, REPORT, POLICY = "manifest.json", "summary.json", "report.html", "policy.yaml"
#: Libraries whose version decides about rows.
LIBRARIES = (
    "py3langid",
    "rensa",
    "ftfy",
    "numpy",
    "scipy",
    "pyarrow",
    "phonenumbers",
    "python-stdnum",
    "hanzidentifier",
)
MODEL_LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class File:
    """A file that was read or written.

    Attributes:
        name: of an input its name in the result, unique; of an output its path within the result's folder, with "/".
        path: of an input the path as it was given; None: it has none (rows in memory, a hub data set).
        rows: rows in it; None where it is no file of rows.
    """

    name: str
    sha256: str
    bytes: int
    rows: int | None = None
    path: str | None = None


def describe(path: Path, name: str, rows: int | None = None, given: str | None = None) -> File:
    """Reads the file once, in pieces. `given`: the path as the user wrote it."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return File(name, digest.hexdigest(), size, rows, given)


@dataclass(frozen=True)
class Run:
    """What differs from run to run though the result does not.

    `cost` is a tally's; `options` of the command line are those that decide nothing, such as ``["--workers", "4"]``.
    """

    engine: str
    workers: int
    seconds: float
    cost: Mapping[str, Any] = field(default_factory=dict)
    options: Sequence[str] = ()


def manifest(
    *,
    inputs: Sequence[File],
    evaluation: Sequence[File],
    outputs: Sequence[File],
    columns: Columns,
    languages: Sequence[str],
    policy: GovernancePolicy,
    counts: Mapping[str, Any],
    run: Run,
    encoding: str = "utf-8",
) -> dict[str, Any]:
    """The manifest of a result whose rows are written.

    Args:
        inputs, evaluation: the files that were read, in their order.
        outputs: the files of rows: kept/…, rejected.jsonl, verdicts.parquet.
        counts: {"rows", "kept", "rejected", …}.
        run: what may differ between two runs with the same result.

    Returns:
        JSON. "result_id" is a hash over all but "run": of two manifests with the same one, the results are the same.
    """
    made: dict[str, Any] = {
        "schema": SCHEMA,
        "package": {"name": "hybrid-kernels", "version": _version("hybrid-kernels"), "code": revision()},
        "versions": versions(policy),
        "inputs": [_without_path(file) for file in inputs],
        "evaluation": [_without_path(file) for file in evaluation],
        "encoding": encoding,
        "columns": asdict(columns),
        "languages": list(languages),
        "policy": policy.model_dump(mode="json"),
        "seed": policy.seed,
        "counts": dict(counts),
        "outputs": [_without_path(file) for file in outputs],
    }
    made = json.loads(json.dumps(made))
    return {
        **made,
        "result_id": result_id(made),
        "run": {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": _commit(),
            "paths": {file.name: file.path for file in (*inputs, *evaluation) if file.path is not None},
            **asdict(run),
        },
    }


def write_policy(folder: Path, policy: GovernancePolicy) -> Path:
    """Write policy.yaml: the whole policy, as `--policy` takes it."""
    import yaml

    write_file(folder / POLICY, yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return folder / POLICY


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write summary.json."""
    write_file(folder / SUMMARY, as_json(summary))
    return folder / SUMMARY


def write_manifest(folder: Path, made: dict[str, Any]) -> Path:
    """Write manifest.json, last of all: it has the hashes of summary, report and policy.

    Raises:
        OSError: one of them is not there, or the manifest cannot be written.
    """
    others = [describe(folder / name, name) for name in (SUMMARY, REPORT, POLICY)]
    run = made["run"] | {"files": [_without_path(file) for file in others]}
    write_file(folder / MANIFEST, as_json(made | {"run": run}))
    return folder / MANIFEST


def as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def command(made: Mapping[str, Any], out: str = "OUT") -> str | None:
    """The command that makes the result again, run where its inputs are; None where rows did not come from files.

    It reads the policy that lies beside the manifest. `out`: the folder to write to.
    """
    paths, columns = made["run"]["paths"], made["columns"]
    if any(file["name"] not in paths for file in (*made["inputs"], *made["evaluation"])):
        return None
    words = ["hybrid-kernels", "govern", *(paths[file["name"]] for file in made["inputs"])]
    words += ["--languages", ",".join(made["languages"]), "--text", ",".join(columns["texts"])]
    words += ["--expected", ",".join(columns["expected"])] if columns["expected"] else []
    words += ["--translation"] if columns["translation"] else []
    words += ["--id-column", columns["id"]] if columns["id"] is not None else []
    for file in made["evaluation"]:
        words += ["--evaluation", paths[file["name"]]]
    words += ["--encoding", made["encoding"]] if made["encoding"] != "utf-8" else []
    words += ["--policy", POLICY, *made["run"]["options"], "--out", out]
    return shlex.join(words)


def result_id(made: Mapping[str, Any]) -> str:
    """Hash over all of a manifest but "run" and itself."""
    rest = {key: value for key, value in made.items() if key not in ("run", "result_id")}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=1)
def revision() -> str:
    """Hash of the code of governance."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions(policy: GovernancePolicy) -> dict[str, str | None]:
    """Of Python and of the libraries that decide; None for what is not installed."""
    libraries = LIBRARIES + (MODEL_LIBRARIES if policy.perplexity.enabled else ())
    return {"python": platform.python_version()} | {library: _version(library) for library in libraries}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    from hybrid_kernels.benchmarking.machine import commit

    return commit()


def _without_path(file: File) -> dict[str, Any]:
    return {key: value for key, value in asdict(file).items() if key != "path"}
