"""The manifest of a result: what it was made of, by what, and what came out of it, so that it can be made again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hybrid_kernels._files import write_file
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.policy_file import dump_policy

SCHEMA = 1
MANIFEST, SUMMARY, REPORT, POLICY = "manifest.json", "summary.json", "report.html", "policy.yaml"
KEPT, REJECTED, VERDICTS = "kept", "rejected.jsonl", "verdicts.parquet"
#: Libraries whose version decides about rows, and those that do where a model is asked.
LIBRARIES = (
    "py3langid", "ftfy", "numpy", "scipy", "pyarrow", "phonenumbers", "python-stdnum", "zhon",
)  # fmt: skip
MODEL_LIBRARIES = ("torch", "transformers", "tokenizers")


def describe(folder: Path, name: str, rows: int | None = None) -> dict[str, Any]:
    """{"name", "bytes", "sha256"} of a file, "rows" too where it holds such; reads the file once, in pieces.

    `name`: its path within the folder of the result, with "/".
    """
    digest, size = hashlib.sha256(), 0
    with (folder / name).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    found = {"name": name, "bytes": size, "sha256": digest.hexdigest()}
    return found if rows is None else found | {"rows": rows}


@dataclass(frozen=True)
class Run:
    """What differs from run to run though the result does not.

    Attributes:
        engine: "local" or "ray".
        workers: worker processes.
        seconds: from start to the end of writing.
        cost: of `Tally.to_json`.
    """

    engine: str
    workers: int
    seconds: float
    cost: Mapping[str, Any] = field(default_factory=dict)


def manifest(
    *,
    inputs: Sequence[Mapping[str, Any]],
    evaluation: Sequence[Mapping[str, Any]] = (),
    outputs: Sequence[Mapping[str, Any]],
    columns: Columns,
    languages: Sequence[str],
    policy: GovernancePolicy,
    counts: Mapping[str, int],
    run: Run,
    encoding: str = "utf-8",
) -> dict[str, Any]:
    """The manifest of a result whose rows are written.

    Args:
        inputs, evaluation: of each source, in their order, `Source.fingerprint()` and its number of "rows".
        outputs: `describe` of each file of rows: kept/…, rejected.jsonl, verdicts.parquet; none of a dry run.
        counts: {"rows", "kept", "rejected", …}.
        encoding: in which the inputs were read.

    Returns:
        JSON. "result_id" is a hash over all but "run": results of one id are the same, whatever ran them, and when.
    """
    decided = {
        "schema": SCHEMA,
        "package": {"name": "hybrid-kernels", "version": _version("hybrid-kernels"), "code": revision()},
        "versions": versions(policy),
        "inputs": [dict(source) for source in inputs],
        "evaluation": [dict(source) for source in evaluation],
        "encoding": encoding,
        "columns": asdict(columns),
        "languages": list(languages),
        "policy": policy.model_dump(mode="json"),
        "seed": policy.seed,
        "counts": dict(counts),
        "outputs": [dict(file) for file in outputs],
    }
    volatile = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        **asdict(run),
    }
    made: dict[str, Any] = json.loads(as_json({"result_id": "", **decided, "run": volatile}))
    return made | {"result_id": result_id(made)}


def result_id(made: Mapping[str, Any]) -> str:
    """Hash over all of a manifest but "run" and the id itself."""
    rest = {key: value for key, value in made.items() if key not in ("run", "result_id")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_policy(folder: Path, policy: GovernancePolicy) -> Path:
    """Write policy.yaml: the whole policy, as `--policy` takes it."""
    write_file(folder / POLICY, dump_policy(policy))
    return folder / POLICY


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write summary.json."""
    write_file(folder / SUMMARY, as_json(summary))
    return folder / SUMMARY


def write_manifest(folder: Path, made: Mapping[str, Any]) -> Path:
    """Write manifest.json, last of all: it has the hashes of summary, report and policy.

    Raises:
        OSError: one of them is not there, or the manifest cannot be written.
    """
    others = [describe(folder, name) for name in (SUMMARY, REPORT, POLICY)]
    write_file(folder / MANIFEST, as_json({**made, "run": {**made["run"], "files": others}}))
    return folder / MANIFEST


def as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def command(made: Mapping[str, Any], folder: str = "RESULT", out: str = "OUT") -> str:
    """The command, in several lines, that makes the result in `folder` again, in `out`, where its inputs are."""
    columns = made["columns"]
    lines = [["hybrid-kernels", "govern", *(source["name"] for source in made["inputs"])]]
    lines += [["--languages", ",".join(made["languages"])], ["--text", ",".join(columns["texts"])]]
    if claims := columns["expected"]:
        fixed = all(claim.startswith("=") for claim in claims)
        lines.append(
            ["--expected" if fixed else "--language-column", ",".join(c.removeprefix("=") for c in claims)]
        )
    lines += [["--translation"]] if columns["translation"] else []
    lines += [["--id-column", columns["id"]]] if columns["id"] is not None else []
    lines += [["--evaluation", source["name"]] for source in made["evaluation"]]
    lines += [["--encoding", made["encoding"]]] if made["encoding"] != "utf-8" else []
    lines += [] if made["outputs"] else [["--dry-run"]]
    # The policy of the result itself: a policy.yaml where the inputs are may be another.
    lines += [["--policy", (Path(folder) / POLICY).as_posix()], ["--out", out]]
    return " \\\n  ".join(map(shlex.join, lines))


@lru_cache(maxsize=1)
def revision() -> str:
    """Hash of the code of governance."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
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


@lru_cache(maxsize=1)
def _commit() -> str | None:
    from hybrid_kernels.benchmarking.machine import commit

    return commit()


@dataclass(frozen=True)
class Audit:
    """What `check` found. `problems`: the result is not the one of the manifest; `notes` are worth knowing."""

    manifest: dict[str, Any]
    problems: list[str]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return not self.problems


def check(folder: Path) -> Audit:
    """Whether the result in `folder` is the one that its manifest tells of, and its inputs are what they were.

    Inputs are looked for from the current folder, by the names they were given. One that is not there is a note, as
    other versions than those installed are.

    Raises:
        OSError: there is no manifest that can be read.
        ValueError: it is no manifest of this schema.
    """
    made = read_manifest(folder)
    problems = [*_id_problems(made), *_file_problems(folder, made)]
    if not problems:  # of files that are not the manifest's own, counts say nothing
        problems += _count_problems(folder, made)
    changed, unreachable = _inputs(made)
    return Audit(made, problems + changed, unreachable + _versions_differ(made))


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}: no result, or one that was not finished"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(made, dict) or made.get("schema") != SCHEMA:
        schema = made.get("schema") if isinstance(made, dict) else None
        raise ValueError(f"{path} must have the schema {SCHEMA}, has {schema!r}")
    needed = (
        "result_id",
        "inputs",
        "evaluation",
        "outputs",
        "counts",
        "policy",
        "versions",
        "package",
        "run",
    )
    if missing := [key for key in needed if key not in made]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return made


def _id_problems(made: Mapping[str, Any]) -> Iterator[str]:
    if made["result_id"] != (found := result_id(made)):
        yield f"{MANIFEST} has been edited: its content has the id {found[:12]}, not {made['result_id'][:12]}"


def _file_problems(folder: Path, made: Mapping[str, Any]) -> Iterator[str]:
    listed = [*made["outputs"], *made["run"].get("files", ())]
    for file in listed:
        try:
            found = describe(folder, file["name"])
        except OSError as error:
            yield f"{file['name']} cannot be read: {error.strerror or error}"
        else:
            if found["sha256"] != file["sha256"]:
                yield f"{file['name']} has changed: {found['bytes']:,} bytes, {file['bytes']:,} in the manifest"
    names = {file["name"] for file in listed}
    for path in sorted((folder / KEPT).rglob("*")):
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in names:
            yield f"{name} is not in the manifest"


def _count_problems(folder: Path, made: Mapping[str, Any]) -> Iterator[str]:
    counts, outputs = made["counts"], {file["name"]: file for file in made["outputs"]}
    rows, kept, rejected = (counts[key] for key in ("rows", "kept", "rejected"))
    if kept + rejected != rows:
        yield f"{kept:,} kept and {rejected:,} rejected rows are not the {rows:,} read"
    read = sum(source["rows"] for source in made["inputs"])
    if read != rows:
        yield f"the inputs have {read:,} rows, {rows:,} were judged"
    if outputs:
        written = sum(file["rows"] for name, file in outputs.items() if name.startswith(f"{KEPT}/"))
        if written != kept:
            yield f"the files of kept rows hold {written:,} rows, {kept:,} are kept"
    if REJECTED in outputs and (lines := _lines(folder / REJECTED)) != rejected:
        yield f"{REJECTED} has {lines:,} lines, {rejected:,} rows are rejected"
    if VERDICTS in outputs:
        import pyarrow.parquet as pq

        if (verdicts := pq.read_metadata(folder / VERDICTS).num_rows) != rows:
            yield f"{VERDICTS} has {verdicts:,} rows, {rows:,} were judged"
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    for key in ("rows", "kept", "rejected"):
        if summary[key] != counts[key]:
            yield f"{SUMMARY} counts {summary[key]:,} as {key}, {MANIFEST} {counts[key]:,}"


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def _inputs(made: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(files that are no longer what was read, sources that cannot be looked at)."""
    changed, unreachable = [], []
    for source in [*made["inputs"], *made["evaluation"]]:
        name = source["name"]
        if "sha256" not in source:
            unreachable.append(f"{name} is no file, so that its content was not compared")
            continue
        try:
            found = describe(Path(), name)
        except OSError as error:
            unreachable.append(f"{name} is not reachable from here: {error.strerror or error}")
        else:
            if found["sha256"] != source["sha256"]:
                changed.append(
                    f"the input {name} has changed: {found['bytes']:,} bytes, {source['bytes']:,} were read"
                )
    return changed, unreachable


def _versions_differ(made: Mapping[str, Any]) -> list[str]:
    here = {library: _version(library) for library in made["versions"]} | {
        "python": platform.python_version()
    }
    notes = [
        f"made with {library} {version or '(not installed)'}, here is {here[library] or 'none'}"
        for library, version in made["versions"].items()
        if here[library] != version
    ]
    package = made["package"]
    if package["code"] != revision():
        notes.append(
            f"made with other code of governance (version {package['version']}, {package['code'][:12]})"
        )
    return notes
