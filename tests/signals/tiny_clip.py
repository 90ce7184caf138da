"""A CLIP of open_clip's that is small and untrained: what is tested is what is done with it."""

import json
from pathlib import Path

CONFIGURATION = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_tiny_clip(folder: Path, seed: int = 0) -> dict[str, object]:
    """Write the architecture and random weights; returns the recipe's [filter.clip]."""
    import open_clip
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps(CONFIGURATION))
    open_clip.add_model_config(folder / "tiny.json")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model("tiny")
        with torch.no_grad():  # as initialised, every picture has nearly the same embedding
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
    torch.save(model.state_dict(), folder / "tiny.pt")
    return {"model": str(folder / "tiny.json"), "pretrained": str(folder / "tiny.pt"), "batch_size": 4}
