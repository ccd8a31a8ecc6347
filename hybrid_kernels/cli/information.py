"""info: what is installed, what would run, and whether that is right."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hybrid_kernels.cli import base as cli


@cli.app.command()
def info(
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or both, with a comma; all here by default.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Such as float32,complex64; the four real ones by default.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What is installed, which backend would run each operator, and whether that is right.

    What would run is found by running each operator once, forward and backward, at a typical shape.

    With --json: the keys of hybrid_kernels.info(), "choices": {"DEVICE DTYPE OPERATOR": {"shape", "forward":
    {operator: backend}, "backward", "declined": {"operator: backend": why}} or {"shape", "failed": why}}, and
    "verdict": {"ok", "message", "commands": what puts it right}.
    """
    import json

    import hybrid_kernels as hk
    from hybrid_kernels.cli import choices

    devices = choices.devices_here(cli.names(device or ""))
    dtypes = choices.dtypes_of(cli.names(dtype or ""))
    ran: dict[str, Any] = {}
    with cli.errors.status("running each operator once") as status:
        for name, each in choices.choices(devices, dtypes):
            ran[name] = each
            status.update(f"running each operator once: {name}")
    found = hk.info()  # afterwards: it tells which variants have run
    found |= {"choices": ran, "verdict": choices.verdict(found, ran)}
    if json_output:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    _print_machine(found)
    _print_extension(found["extension"])
    _print_operators(found["operators"])
    _print_choices(ran)
    _rows("Triton variants that ran", dict.fromkeys(found["variants_run"], ""))
    right = found["verdict"]
    cli.console.print(
        f"[bold {'green' if right['ok'] else 'red'}]installed right:[/]"
        if right["ok"]
        else "[bold red]not installed right:[/]",
        _plain(right["message"]),
        soft_wrap=True,
    )
    for command in right["commands"]:
        cli.console.print(f"  to put it right: {_plain(command)}", soft_wrap=True)


def _plain(text: object) -> str:
    """Without what rich would take for its markup."""
    from rich.markup import escape

    return escape(str(text))


def _rows(title: str, rows: dict[str, object]) -> None:
    from rich.table import Table

    if not rows:
        return
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, _plain(value))
    cli.console.print(table, "")


def _print_machine(found: dict[str, Any]) -> None:
    torch, cpu = found["torch"], found["cpu"]
    built = next((f"{kind} {torch[kind]}" for kind in ("cuda", "hip") if torch[kind]), "CPU only")
    rows: dict[str, object] = {
        "hybrid-kernels": found["hybrid_kernels"],
        "torch": f"{torch['version']} ({built})",
        "Python": f"{found['python']} on {found['platform']}",
        "CPU": f"{cpu['processor']}, {cpu['cores']} cores, torch uses {cpu['torch_threads']} threads",
    }
    for index, gpu in enumerate(found["gpus"]):
        rows[f"GPU {index}"] = "{name}, compute capability {capability}, {memory_gib} GiB".format(**gpu)
    if not found["gpus"]:
        rows["GPU"] = "torch sees none"
    for gpu in dict.fromkeys(gpu["name"] for gpu in found["gpus"]):
        measured = {whose: by_gpu[gpu] for whose, by_gpu in found["selection"].items() if gpu in by_gpu}
        rows[f"measured on {gpu}"] = (
            ", ".join(f"{count} shapes by the {whose}" for whose, count in measured.items())
            or "nothing: hybrid-kernels bench tune finds which Triton variants win there"
        )
    if found["backend_requested"] != "auto" or found["variant_requested"]:
        rows["asked for"] = f"backend {found['backend_requested']}, variant {found['variant_requested']}"
    _rows("Machine", rows)
    installed = {name: version for name, version in found["packages"].items() if version}
    missing = {name: f"not installed: {command}" for name, command in found["installing"].items()}
    _rows("Optional packages", {**installed, **missing})


def _print_extension(extension: dict[str, Any]) -> None:
    state = "loaded" if extension["loaded"] else f"not loaded: {extension['reason']}"
    rows: dict[str, object] = {"C++ kernels": state}
    if extension["loaded"]:
        rows["instruction set"] = f"{extension['instruction_set']} (torch's; ATEN_CPU_CAPABILITY changes it)"
    if extension["cpp"]:
        rows["compiler"] = extension["compiler"]
        for compiler, flags in (extension.get("flags") or {"cxx": ["not recorded"]}).items():
            rows[f"{compiler} flags"] = " ".join(flags)
        rows["built for"] = f"torch {extension['torch']}, with Python {extension['python']}"
    gpus = extension.get("cuda_architectures") or "the GPUs of the machine it was built on"
    rows["CUDA kernels"] = (
        f"built for {gpus}" if extension["cuda"] else f"not built: {extension['cuda_reason']}"
    )
    if extension.get("debug"):
        rows["debug"] = "built without optimisation"
    _rows("Compiled extension", rows)


class _Notes:
    """Reasons, each said once below a table and named in it by its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, reason: str) -> int:
        return self.numbers.setdefault(reason, len(self.numbers) + 1)

    def print(self) -> None:
        for reason, number in self.numbers.items():
            cli.console.print(f"  {number}  {_plain(reason)}", soft_wrap=True)
        cli.console.print("")


def _print_operators(operators: dict[str, dict[str, str]]) -> None:
    from rich.table import Table

    from hybrid_kernels.ops.backend import BACKENDS

    backends = [name for name in BACKENDS if any(name in available for available in operators.values())]
    table = Table(
        "operator", *backends, title="Backends of each operator: ✓ could run here", title_justify="left"
    )
    notes = _Notes()
    for operator, available in operators.items():
        cells = [
            "" if state is None else "✓" if state == "available" else f"✗ {notes(state)}"
            for backend, state in ((backend, available.get(backend)) for backend in backends)
        ]
        table.add_row(operator, *cells)
    cli.console.print(table)
    cli.console.print("  Each has a reference besides, in plain PyTorch.")
    notes.print()


def _cell(ran: dict[str, Any], notes: _Notes) -> str:
    if "failed" in ran:
        return f"fails {notes(ran['failed'])}"
    forward, backward = (
        "+".join(sorted(set(ran[part].values()))) or "torch" for part in ("forward", "backward")
    )
    numbers = sorted({notes(f"not {key.split(': ')[1]}: {why}") for key, why in ran["declined"].items()})
    which = forward if forward == backward else f"{forward} / {backward}"
    return f"{which} {','.join(map(str, numbers))}".strip()


def _print_choices(ran: dict[str, Any]) -> None:
    from rich.table import Table

    keys = [tuple(name.split()) for name in ran]
    for device in dict.fromkeys(key[0] for key in keys):
        dtypes = list(dict.fromkeys(dtype for on, dtype, _ in keys if on == device))
        table = Table(
            "function",
            "at the shape",
            *dtypes,
            title=f"What runs on {device}: forward / backward where they differ",
            title_justify="left",
        )
        notes = _Notes()
        for name in dict.fromkeys(function for on, _, function in keys if on == device):
            cells = {dtype: ran.get(f"{device} {dtype} {name}") for dtype in dtypes}
            shape = next(each["shape"] for each in cells.values() if each)
            table.add_row(name, shape, *(_cell(each, notes) if each else "–" for each in cells.values()))
        cli.console.print(table)
        notes.print()
