"""The objectives, one file each; importing this package registers them all."""

from trainers.objectives import itc, itm, mlm, mrc_kl, mrfr
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes

__all__ = ["OBJECTIVES", "Objective", "Outcome", "Sizes", "itc", "itm", "mlm", "mrc_kl", "mrfr"]
