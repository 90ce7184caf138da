"""A small detector of our own, for where no other's weights are at hand: its training, and what that gave.

Beside this file lie `clipart.pt` (the weights, fp16), `clipart.csv` (loss and mAP, epoch by epoch) and `clipart.json`
(classes, mAP on pictures that it never saw, settings). `python -m pipeline.demo.detector` makes all three anew.
"""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("clipart.pt")
