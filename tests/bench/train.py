"""Every benchmark of training, one after the other, into `bench/train.json` and as a Markdown table.

`python -m tests.bench.train [--quick] [--only NAME,NAME]`. With --quick it takes minutes and proves that everything
runs; figures to quote are those of the whole, on a machine that does nothing else: half an hour.
"""

import sys

from tests.bench import front

# Each is a module with a command line, whose defaults are the sizes to quote; here the sizes for --quick.
BENCHES = {"training_steps": "--quick", "training_loading": "--quick", "training_resume": "--quick"}

if __name__ == "__main__":
    sys.exit(front.run("train", BENCHES, ("torch", "transformers", "accelerate", "pyarrow"), __doc__))
