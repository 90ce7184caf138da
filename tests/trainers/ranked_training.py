"""What each process of `test_distributed` runs: torchrun ranked_training.py FOLDER RECIPE.json [STOP]."""

import json
import sys
from pathlib import Path

import torch
from made_feed import made_training

from pipeline.model_recipe import ModelRecipe
from trainers.loop.tensor_file import write_tensors


def main(folder: Path, recipe: Path, stop: int | None) -> None:
    torch.set_num_threads(1)
    parsed = ModelRecipe.model_validate(json.loads(recipe.read_text()))
    run = made_training(parsed, folder / "checkpoint", board=folder / "board")
    run.run(stop)
    said = {"rows": run.metrics.rows, "samples": run.speed.samples, "ranks": run.ranks}
    (folder / f"{run.rank}.json").write_text(json.dumps(said))
    write_tensors(folder / f"{run.rank}.safetensors", run.model.state_dict())
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
