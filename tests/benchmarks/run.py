"""Run the benchmarks: python tests/benchmarks/run.py [--model DIR] [--json FILE] [NAME]…

Each runs as a process of its own, so that none meets the memory of another. NAME is that of a
file without `bench_`, such as `size`; without one all are run. Ends with 1 if a target was missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import DEFAULT_MODEL, machine

HERE = Path(__file__).parent
NAMES = (
    "size",
    "memory_speed",
    "codecs",
    "processes",
    "start",
    "chunks",
    "memory",
    "depth",
    "bases",
    "formats",
)


def main() -> int:
    """Run what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of the f32 model")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(NAMES)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"there is no benchmark {sorted(unknown)[0]!r}")
    described = machine()
    print("\n".join(f"{what:10} {value}" for what, value in described.items()), flush=True)
    results = {name: run_benchmark(name, arguments.model) for name in arguments.names or NAMES}
    figures = [figure for result in results.values() for figure in result["figures"]]
    missed = [figure["name"] for figure in figures if figure["verdict"] == "MISSED"]
    bounded = sum(figure["target"] is not None for figure in figures)
    print(f"\n{bounded - len(missed)} of {bounded} targets met")
    for name in missed:
        print(f"  missed: {name}")
    if arguments.json:
        report = {"machine": described, "benchmarks": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if missed else 0


def run_benchmark(name: str, model: Path) -> dict:
    """Run one in a process of its own, which prints as it goes; returns its title and figures."""
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "figures.json"
        script = HERE / f"bench_{name}.py"
        command = [sys.executable, script, "--model", model, "--json", found]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"bench_{name}.py could not finish")
        return json.loads(found.read_text())


if __name__ == "__main__":
    sys.exit(main())
