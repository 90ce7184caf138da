"""Every benchmark of the data half, one after the other, into `bench/data.json` and as a Markdown table.

`python -m tests.bench.data [--quick] [--only NAME,NAME]`. With --quick it takes minutes and proves that everything
runs; figures to quote are those of the whole, on a machine that does nothing else: about an hour, and 40 GB of disk.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.bench.table import Row, write

# Each is a module with a command line, whose defaults are the sizes to quote; here the sizes for --quick.
BENCHES = {
    "text_rules": "--pairs 300_000 --rounds 1 --growth 100_000 300_000",
    "rule_peers": "--pandas 100_000 --juicer 10_000 --rounds 1",
    "clip_art": "--quick",
    "clean_web": "--images 300 --rounds 1",
    "hostile_web": "--images 200 --drip-seconds 20 --huge 1 --bombs 1 --deadline 5",
}


def machine() -> str:
    """The machine and what the peers are, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    packages = ", ".join(f"{name} {version(name)}" for name in ("duckdb", "pandas", "img2dataset"))
    cores = len(os.sched_getaffinity(0))
    python = platform.python_version()
    return f"{cores} cores of {model or platform.machine()}, {memory:.0f} GB; Python {python}, {packages}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--only", default=",".join(BENCHES), help="which, separated by commas")
    options = parser.parse_args()
    rows: list[Row] = []
    failed = []
    for name in options.only.split(","):
        flags = BENCHES[name].split() if options.quick else []
        # One that fails does not cost the others' hour; each leaves `bench/<name>.json`.
        if subprocess.run([sys.executable, "-m", f"tests.bench.{name}", *flags], check=False).returncode:
            failed.append(name)
        else:
            rows += [Row(**row) for row in json.loads(Path("bench", f"{name}.json").read_text())]
    print(f"\n{machine()}\n")
    write("data-quick" if options.quick else "data", rows)
    if failed:
        print(f"error: {', '.join(failed)} failed", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
