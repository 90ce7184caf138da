"""Every benchmark of the feature half, one after the other, into `bench/features.json` and as a Markdown table.

`python -m tests.bench.features [--quick] [--only NAME,NAME]`. With --quick it takes minutes and proves that everything
runs; figures to quote are those of the whole, on a machine that does nothing else: about an hour, and 15 GB of disk.
"""

import sys

from tests.bench import front

# Each is a module with a command line, whose defaults are the sizes to quote; here the sizes for --quick.
BENCHES = {
    "feature_streams": "--images 1_000 --rounds 1",
    "feature_waits": "--quick",
    "feature_sizes": "--quick",
    "feature_memory": "--quick",
    "extraction": "--quick",
    "cached_epochs": "--quick",
}

if __name__ == "__main__":
    sys.exit(front.run("features", BENCHES, ("torch", "torchvision", "timm", "ultralytics", "pyarrow"), __doc__))
