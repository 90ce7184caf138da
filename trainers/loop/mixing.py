"""How a step's objectives go together: each on an input of its own, or all on one that they have corrupted by turns."""

from collections.abc import Callable, Mapping, Sequence

import torch

from trainers.data.batch import Batch
from trainers.network.model import VisionLanguageModel
from trainers.network.towers import Towers
from trainers.network.view import View
from trainers.objectives import Outcome
from trainers.objectives.objective import Reading, all_wanted


def applicable(model: VisionLanguageModel, batch: Batch, names: Sequence[str]) -> list[str]:
    """Those of the objectives for which the batch has all that they need."""
    return [name for name in names if model.objective(name).needs <= batch.parts]


def outcomes(
    model: VisionLanguageModel,
    batch: Batch,
    names: Sequence[str],
    random: Callable[[str], torch.Generator],
    joint: bool = False,
) -> Mapping[str, Outcome]:
    """Each named objective's outcome on the batch; `random` gives the generator of a name.

    With `joint`, those that only read the encoder's last states share one pass over one corrupted input; where texts
    and images have been recombined for one of them, the others predict only in the rows that match.
    """
    towers = Towers(model, batch)
    found = {}
    readers = {name: reader for name in names if joint and isinstance(reader := model.objective(name), Reading)}
    if readers:
        view = View.of(batch)
        for name, reader in sorted(readers.items(), key=lambda item: not item[1].recombines):
            view = reader.corrupt(view, random(name))
        streams = towers.encode(view, all_wanted(list(readers.values()), view))
        found = {name: reader.loss(model, view, streams) for name, reader in readers.items()}
    for name in names:
        if name not in found:
            found[name] = model.objective(name)(towers, random(name))
    return {name: found[name] for name in names}
