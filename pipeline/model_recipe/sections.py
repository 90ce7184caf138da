"""What every section of a model recipe is made of."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Modality = Literal["text", "vision"]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, table by table; a list or a value replaces the one below it."""
    laid = dict(below)
    for key, value in above.items():
        under = laid.get(key)
        laid[key] = laid_over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return laid
