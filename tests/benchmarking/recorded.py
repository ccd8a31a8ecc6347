"""Records as `hybrid-kernels bench` writes them, of made-up times."""

from __future__ import annotations

from typing import Any

MACHINE = {"processor": "a processor", "cores": 2, "threads": 2, "gpu": None, "platform": "Linux"}
VERSIONS = {
    "hybrid_kernels": "0.1.0",
    "torch": "2.13.0",
    "triton": None,
    "peft": "0.21.2",
    "python": "3.11.7",
}
FLOOR, OURS, EAGER, PEER = "frozen layer", "hybrid 16 + 16", "hybrid, eager", "PEFT LoRA r=32"
#: Milliseconds of the sides of a layer.
LAYER: dict[str, float | str] = {FLOOR: 2.0, OURS: 2.2, EAGER: 2.4, PEER: 3.0}


def run(
    sides: dict[str, float | str],
    shape: dict[str, int],
    *,
    kind: str = "layer",
    name: str = "hybrid",
    dtype: str = "float32",
    device: str = "cpu",
    part: str = "both",
    floor: str | None = FLOOR,
    ours: str = OURS,
    variants: tuple[str, ...] = (EAGER,),
    **fields: Any,
) -> list[dict[str, Any]]:
    """The records of one pass of a case; a side is its milliseconds, or why it was not measured."""
    case = "/".join((kind, name, "-".join(f"{k}{v}" for k, v in shape.items()), dtype, device))
    result = []
    for side, value in sides.items():
        record: dict[str, Any] = {
            "case": case,
            "kind": kind,
            "name": name,
            "shape": shape,
            "dtype": dtype,
            "device": device,
            "pass": part,
            "sweep": None,
            "side": side,
            "floor": floor,
            "ours": ours,
            "machine": MACHINE,
            "versions": VERSIONS,
            "commit": "abc1234",
            "date": "2026-01-01T00:00:00",
            "rounds": 25,
        }
        if isinstance(value, str):
            record["failed"] = value
        else:
            others = {
                o: ms for o in (floor, ours) if o != side and isinstance(ms := sides.get(o or ""), float)
            }
            record |= {
                "median_seconds": value / 1e3,
                "quartiles_seconds": [0.95 * value / 1e3, 1.05 * value / 1e3],
                "seconds": [value / 1e3] * 25,
                "ratios": {
                    other: {"median": value / ms, "quartiles": [0.96 * value / ms, 1.03 * value / ms]}
                    for other, ms in others.items()
                },
                "peak_bytes": None,
                "parameters": 1000,
                "declined": {},
                "graph": None,
                "roofline": None,
                "profile": None,
                "ran": ["low_rank_linear: cpp"] if side in (ours, *variants) else [],
            }
        result.append(record | fields)
    return result
