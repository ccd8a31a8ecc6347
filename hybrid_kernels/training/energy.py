"""Energy that the machine's own counters have counted: Intel's RAPL for processors, NVML for NVIDIA GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since some moment, of processor packages and GPUs together; they count whatever else the machine does.

    Where a process may read neither, `joules` is None: RAPL needs the right to read `energy_uj`, NVML the package
    `nvidia-ml-py` and a GPU of Volta's generation or later.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # Packages alone ("intel-rapl:0"): cores and memory controllers ("intel-rapl:0:0") are parts of them.
        found = [path for path in sorted(powercap.glob("intel-rapl:*")) if path.name.count(":") == 1]
        self._packages = [_Package(path) for path in found if _read(path / "energy_uj") is not None]
        self._gpus = _gpus()

    def joules(self) -> float | None:
        if not self._packages and not self._gpus:
            return None
        return sum(package.joules() for package in self._packages) + sum(
            _gpu_joules(gpu) for gpu in self._gpus
        )

    @property
    def sources(self) -> list[str]:
        """What is counted: "RAPL", "NVML"."""
        return ["RAPL"] * bool(self._packages) + ["NVML"] * bool(self._gpus)


class _Package:
    """A counter in microjoules that starts again at 0 after `max_energy_range_uj`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "energy_uj"
        self.range = _read(folder / "max_energy_range_uj") or 2**32
        self.last, self.total = _read(self.file) or 0, 0

    def joules(self) -> float:
        now = _read(self.file)
        if now is not None:
            self.total += (now - self.last) % self.range
            self.last = now
        return self.total / 1e6


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _gpus() -> list[Any]:
    """NVML's handles of the GPUs that count energy."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return []
    return handles


def _gpu_joules(handle: Any) -> float:
    import pynvml

    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
