"""Energy of the CPU packages in joules, from the RAPL counters that Linux shows in sysfs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/class/powercap")


class EnergyMeter:
    """Sums the packages' counters. ``available`` is False where the host has none or forbids reading them."""

    def __init__(self, root: Path = ROOT) -> None:
        self._packages: list[tuple[Path, int]] = []
        for zone in sorted(root.glob("intel-rapl:*")):
            if zone.name.count(":") == 1 and (limit := _read(zone / "max_energy_range_uj")) is not None:
                self._packages.append((zone / "energy_uj", limit))
        self._last = self._counters()

    @property
    def available(self) -> bool:
        """Whether joules can be told on this host."""
        return bool(self._packages) and self._last is not None

    def _counters(self) -> list[int] | None:
        values = [_read(path) for path, _ in self._packages]
        found = [value for value in values if value is not None]
        return found if len(found) == len(values) else None

    def lap(self) -> float | None:
        """Joules since the last call (or since the start); None where they can't be told."""
        before, self._last = self._last, self._counters()
        if not self._packages or before is None or self._last is None:
            return None
        total = 0
        for (_, limit), begin, end in zip(self._packages, before, self._last, strict=True):
            total += end - begin if end >= begin else end - begin + limit
        return total / 1e6


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
