"""What `tests.bench.data` and `tests.bench.features` share: benchmarks one after the other, one table of all."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.bench.table import Row, write


def machine(packages: Sequence[str]) -> str:
    """The machine and the versions of these packages, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    cores = len(os.sched_getaffinity(0))
    python = platform.python_version()
    return f"{cores} cores of {model or platform.machine()}, {memory:.0f} GB; Python {python}, {versions}"


def run(name: str, benches: Mapping[str, str], packages: Sequence[str], description: str) -> int:
    """The command line. `benches`: module of this folder -> its flags for --quick; each leaves `bench/<module>.json`,
    which go together into `bench/<name>.json`. Returns how many failed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--only", default=",".join(benches), help="which, separated by commas")
    options = parser.parse_args()
    rows: list[Row] = []
    failed = []
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the Makefile, also without it
    for bench in options.only.split(","):
        flags = benches[bench].split() if options.quick else []
        # One that fails does not cost the others' hour.
        if subprocess.run([sys.executable, "-m", f"tests.bench.{bench}", *flags], check=False).returncode:
            failed.append(bench)
        else:
            rows += [Row(**row) for row in json.loads(Path("bench", f"{bench}.json").read_text())]
    print(f"\n{machine(packages)}\n")
    write(f"{name}-quick" if options.quick else name, rows)
    if failed:
        print(f"error: {', '.join(failed)} failed", file=sys.stderr)
    return len(failed)
