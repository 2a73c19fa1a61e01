"""Whether the machine belonged to the variant while it was timed: what the kernel counted, and when that is too much.

Counters are read before and after the timed part of a trial, in which the variants of a block alternate. With s seconds
on c logical processors, a trial is disturbed where

    stolen      the hypervisor gave more than 2 % of c * s to other guests           /proc/stat, field `steal`
    other load  other processes used more than 10 % of c * s                         /proc/stat, busy - our own
    quota       the control group's quota held it back for more than 1 % of s        cpu.stat, throttled time
    heat        a processor throttled itself at least once                           thermal_throttle/*_count
    clock       its clock was below 90 % of the session's median                     cpufreq/scaling_cur_freq

and at least `LEAST` seconds of it, because the kernel counts in ticks of 10 ms. The reasons look at the machine alone,
never at the times that were measured: leaving out what looks slow would be choosing the result. What the system does
not tell is None, and disturbs nothing: `Reading.untold` names it. Involuntary context switches are kept for the reader
but judge nothing, since what they count differs from kernel to kernel.

Not covered: other load on the memory bus from processors that the variant is not pinned to; a quota of a control group
other than the topmost one that is visible (a container's own is, a systemd unit's is not); Windows and macOS tell
nothing of all this.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evaluation.machine import usable_processors
from evaluation.measurement import Value

STOLEN, OTHERS, HELD_BACK, SLOW_CLOCK = 0.02, 0.10, 0.01, 0.90
LEAST = 0.03
TICKS_PER_SECOND = 100
"""USER_HZ, in which /proc/stat counts on every architecture that Linux has."""
_STEAL, _IDLE = 7, (3, 4)
_CGROUP = ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat")


class Reading(Value):
    """What the machine told about some seconds; None for what it does not tell."""

    seconds: float
    cpus: int
    """Logical processors that it could use."""
    own: float
    """CPU seconds of the process itself, and of those that alternated with it."""
    busy: float | None = None
    """CPU seconds of everything on these processors."""
    stolen: float | None = None
    """CPU seconds that the hypervisor gave to other guests."""
    held_back: float | None = None
    """Seconds for which a quota stopped it."""
    heat: int | None = None
    """How often a processor throttled itself."""
    megahertz: float | None = None
    """The processors' mean clock at the end."""
    preempted: int | None = None
    """Involuntary context switches."""

    @property
    def others(self) -> float | None:
        """CPU seconds of all other processes."""
        return None if self.busy is None else max(0.0, self.busy - self.own)

    @property
    def untold(self) -> tuple[str, ...]:
        """What the system does not tell."""
        told = {"stolen": self.stolen, "other load": self.busy, "quota": self.held_back, "heat": self.heat}
        return tuple(name for name, value in (told | {"clock": self.megahertz}).items() if value is None)


def disturbed(reading: Reading, usual_megahertz: float | None = None) -> tuple[str, ...]:
    """The reasons against a trial, in words; empty where nothing speaks against it."""
    room = reading.seconds * reading.cpus
    reasons = [
        _share("stolen", reading.stolen, STOLEN, room),
        _share("other load", reading.others, OTHERS, room),
        _share("held back by a quota", reading.held_back, HELD_BACK, reading.seconds),
        f"throttled by heat {reading.heat} times" if reading.heat else "",
    ]
    if usual_megahertz and reading.megahertz is not None and reading.megahertz < SLOW_CLOCK * usual_megahertz:
        reasons.append(f"clock at {reading.megahertz:.0f} MHz of the usual {usual_megahertz:.0f}")
    return tuple(reason for reason in reasons if reason)


def _share(what: str, taken: float | None, allowed: float, room: float) -> str:
    if taken is None or taken < LEAST or taken <= allowed * room:
        return ""
    return f"{what} {taken / room:.0%}" if room > 0 else what


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The kernel's counters at one moment; `since` makes a reading of two."""

    at: float
    cpus: tuple[int, ...]
    own: float
    busy: float | None
    stolen: float | None
    held_back: float | None
    heat: int | None
    megahertz: float | None
    preempted: int | None

    @classmethod
    def now(cls, root: Path = Path("/")) -> "Counters":
        """Read them; `root` is where proc and sys lie."""
        cpus = usable_processors()
        busy, stolen = _ticks(root, cpus)
        return cls(
            at=time.perf_counter(),
            cpus=cpus,
            own=time.process_time(),
            busy=busy,
            stolen=stolen,
            held_back=_held_back(root),
            heat=_heat(root, cpus),
            megahertz=_megahertz(root, cpus),
            preempted=_preempted(),
        )

    def since(self, before: "Counters") -> Reading:
        """What happened in between."""
        return Reading(
            seconds=self.at - before.at,
            cpus=max(1, len(self.cpus)),
            own=self.own - before.own,
            busy=_difference(self.busy, before.busy),
            stolen=_difference(self.stolen, before.stolen),
            held_back=_difference(self.held_back, before.held_back),
            heat=None if self.heat is None or before.heat is None else self.heat - before.heat,
            megahertz=self.megahertz,
            preempted=None if self.preempted is None or before.preempted is None else self.preempted - before.preempted,
        )


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _ticks(root: Path, cpus: Iterable[int]) -> tuple[float | None, float | None]:
    """CPU seconds that these processors were busy, and that were stolen from them."""
    wanted = {f"cpu{number}" for number in cpus}
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in (root / "proc/stat").read_text().splitlines()]
        rows = [[int(field) for field in line[1:9]] for line in lines if line and line[0] in wanted]
        if rows:
            busy = sum(sum(row[:_STEAL]) - sum(row[place] for place in _IDLE) for row in rows)
            return busy / TICKS_PER_SECOND, sum(row[_STEAL] for row in rows) / TICKS_PER_SECOND
    return None, None


def _held_back(root: Path) -> float | None:
    """Seconds for which the control group's quota stopped it: microseconds in version 2, nanoseconds in version 1."""
    for place in _CGROUP:
        with suppress(OSError, ValueError):
            counters = dict(line.split() for line in (root / place).read_text().splitlines())
            if "throttled_usec" in counters:
                return int(counters["throttled_usec"]) / 1e6
            if "throttled_time" in counters:
                return int(counters["throttled_time"]) / 1e9
    return None


def _heat(root: Path, cpus: Iterable[int]) -> int | None:
    counts = [
        _number(root / f"sys/devices/system/cpu/cpu{number}/thermal_throttle/{kind}_throttle_count")
        for number in cpus
        for kind in ("core", "package")
    ]
    told = [int(count) for count in counts if count is not None]
    return sum(told) if told else None


def _megahertz(root: Path, cpus: Iterable[int]) -> float | None:
    kilohertz = [_number(root / f"sys/devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq") for number in cpus]
    told = [value for value in kilohertz if value is not None]
    return sum(told) / len(told) / 1000 if told else None


def _number(file: Path) -> float | None:
    with suppress(OSError, ValueError):
        return float(file.read_text())
    return None


def _preempted() -> int | None:
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return None
