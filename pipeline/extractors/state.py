"""Reading a network's weights from a file that may be damaged, foreign or hostile: no pickle is run."""

from pathlib import Path

import torch

from pipeline.errors import PairmillError


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict out of a .safetensors or a torch.save file. Raises PairmillError for whatever else there is."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged, foreign or hostile file makes of the readers
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PairmillError(f"cannot load the weights {path}: {said}", "a state dict is wanted") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise PairmillError(f"{path} is no state dict", "save one: torch.save(model.state_dict(), path)")
    return state


def load_in_order(model: torch.nn.Module, path: Path) -> None:
    """Load a state dict whose names are the model's, or whose tensors come in the same order and shapes.

    A safetensors file keeps no order, so there the names must be right.
    """
    state = read_state(path)
    own = model.state_dict()
    if own.keys() != state.keys():
        wanted = [name for name in own if not name.endswith("num_batches_tracked")]
        given = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
        sorts = path.suffix == ".safetensors"
        if sorts or [own[name].shape for name in wanted] != [value.shape for value in given]:
            raise PairmillError(
                f"{path} does not fit the model: other tensors, or in another order", "correct [extract] weights"
            )
        state = dict(zip(wanted, given, strict=True))
    elif any(own[name].shape != value.shape for name, value in state.items()):
        raise PairmillError(f"{path} does not fit the model: tensors of other shapes", "correct [extract] weights")
    model.load_state_dict(state, strict=False)
