"""What the benchmarks share: figures and how they are shown, timing, memory, the machine.

Each `bench_*.py` yields figures and ends with `run(...)`, which prints them as a table; `--json
FILE` also writes them down. Contenders of one comparison take turns, so that a slow spell of the
machine hits all of them, and what counts is the median.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

K = TypeVar("K")

ROOT = Path(__file__).parents[2]
MSTORE = str(Path(sys.executable).parent / "mstore")
DEFAULT_MODEL = ROOT / ".venv/demo/model"

MIB = 1 << 20
GIB = 1 << 30

_POLL_SECONDS = 0.004


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `target` is the bound it should keep (`at_most`, else at least).

    `value` is None when it could not be measured; `note` says why, or what else to know.
    `samples` are the single runs behind a median.
    """

    name: str
    value: float | None
    unit: str = ""
    target: float | None = None
    at_most: bool = True
    note: str = ""
    samples: list[float] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`ok`, `MISSED`, or nothing where there is no target or no value."""
        if self.target is None or self.value is None:
            return ""
        met = self.value <= self.target if self.at_most else self.value >= self.target
        return "ok" if met else "MISSED"

    @property
    def spread(self) -> str:
        """The lowest and the highest of the runs."""
        if not self.samples:
            return ""
        low, high = (_number(pick(self.samples), self.unit) for pick in (min, max))
        return f"{low} to {high}"

    def cells(self) -> tuple[str, ...]:
        """Name, value, target, verdict and note, as the table shows them."""
        value = "-" if self.value is None else _number(self.value, self.unit)
        sign = "<=" if self.at_most else ">="
        target = "" if self.target is None else f"{sign} {_number(self.target, self.unit)}"
        return (
            self.name,
            value,
            target,
            self.verdict,
            ", ".join(filter(None, (self.note, self.spread))),
        )


@dataclass(frozen=True, slots=True)
class Process:
    """A finished process: wall time in seconds, and peak memory in bytes.

    `resident` is VmHWM, which counts mapped file pages that the kernel could drop at any time;
    `anonymous` is the highest RssAnon + RssShmem seen, polled every few milliseconds.
    """

    seconds: float
    resident: int
    anonymous: int


def run_process(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> float:
    """Run `command` to its end; returns its wall time in seconds, raises when it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=_environment(env), capture_output=True, text=True)
    took = time.perf_counter() - start
    _check(command, done.returncode, done.stderr)
    return took


def watch_process(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Process:
    """Like `run_process`, watching the memory of the process."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=cwd, env=_environment(env), stdout=subprocess.DEVNULL, stderr=errors
        )
        resident = anonymous = 0
        while child.poll() is None:
            memory = _memory(child.pid)
            resident = max(resident, memory.get("VmHWM", 0))
            anonymous = max(anonymous, memory.get("RssAnon", 0) + memory.get("RssShmem", 0))
            time.sleep(_POLL_SECONDS)
        took = time.perf_counter() - start
        errors.seek(0)
        _check(command, child.returncode, errors.read())
    return Process(took, resident, anonymous)


def in_turns(contenders: Mapping[K, Callable[[], float]], runs: int) -> dict[K, list[float]]:
    """What each contender returned in `runs` rounds in which all take their turn.

    A round before them does not count.
    """
    results: dict[K, list[float]] = {name: [] for name in contenders}
    for _ in range(1 + runs):
        for name, contender in contenders.items():
            results[name].append(contender())
    return {name: result[1:] for name, result in results.items()}


def repeat(work: Callable[[], float], runs: int) -> list[float]:
    """What `work` returned in `runs` runs, after one that does not count."""
    return in_turns({"": work}, runs)[""]


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, in this process."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(
    name: str,
    samples: Sequence[float],
    unit: str,
    target: float | None = None,
    *,
    at_most: bool = True,
    note: str = "",
) -> Figure:
    """The figure of several runs: their median, and how far they are apart."""
    middle = statistics.median(samples)
    return Figure(name, middle, unit, target, at_most, note, list(samples))


def stored_size(directory: Path) -> int:
    """Bytes of all files below `directory`."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@contextmanager
def workspace() -> Iterator[Path]:
    """A new directory on the disk of this checkout's temporary files, removed in the end."""
    path = Path(tempfile.mkdtemp(prefix="mstore-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{len(os.sched_getaffinity(0))} x {_processor()}",
        "memory": f"{memory / GIB:.0f} GiB",
        "disk": _file_system(Path(tempfile.gettempdir())),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "busy": "load {:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
    }


def run(title: str, measure: Callable[[Path], Iterator[Figure]]) -> None:
    """The command line of one benchmark: [--model DIR] [--json FILE]."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of the f32 model")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if not (arguments.model / "model.safetensors").is_file():
        parser.error(f"there is no model in {arguments.model}; `make bench-figures` fetches one")
    print(f"\n{title}", flush=True)
    figures = []
    for figure in measure(arguments.model.resolve()):
        figures.append(figure)
        show(figure)
    if arguments.json:
        rows = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
        arguments.json.write_text(json.dumps({"title": title, "figures": rows}, indent=1) + "\n")


def show(figure: Figure) -> None:
    """Print the figure as a line of the table."""
    name, value, target, verdict, note = figure.cells()
    line = f"  {name:44} {value:>15}  {target:18} {verdict:6}  {note}"
    print(line.rstrip(), flush=True)


def _number(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.2f} ms"
    if unit == "bytes":
        return f"{value / MIB:.1f} MiB" if value >= MIB else f"{value / 1024:.1f} KiB"
    if unit == "of raw":
        return f"{value:.4f}"
    if value >= 1000:
        return f"{value:,.0f} {unit}".rstrip()
    return f"{value:.2f} {unit}".rstrip()


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", **(extra or {})}


def _check(command: Sequence[str | Path], code: int, errors: str) -> None:
    if code != 0:
        shown = " ".join(str(word) for word in command)
        raise SystemExit(f"{shown} ended with {code}:\n{errors.strip()}")


def _memory(pid: int) -> dict[str, int]:
    """The memory lines of /proc/PID/status in bytes; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(path: Path) -> str:
    """Kind and device of the file system that `path` is on."""
    best, found = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mount, kind = line.split()[:3]
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, found = mount, f"{kind} on {device}"
    return found
