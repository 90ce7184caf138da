"""The systems of recipes/models: what they are made of, and the table that docs/models.md shows of it."""

import tomllib
from pathlib import Path

import open_clip
import pytest
import torch

from trainers.parameters import Published, System, counts, systems, table

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SYSTEMS = list(systems(RECIPES))
PUBLISHED = [system for system in SYSTEMS if system.published]
EXPECTED = {
    "bert",
    "vse",
    "vilbert",
    "lxmert",
    "visualbert",
    "uniter",
    "oscar",
    "vinvl",
    "interbert",
    "unimo",
    "pixelbert",
    "soho",
    "vilt",
    "clip",
    "align",
    "brivl",
    "albef",
    "meter-coattention",
    "meter-merged",
    "meter-encdec",
    "vlmo",
    "blip",
    "ofa",
    "e2e-vlp",
    "kd-vlp",
    "mural",
    "kosmos1",
}


def documented() -> str:
    return (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_system_has_a_recipe_and_a_place_in_the_documentation() -> None:
    assert {system.name for system in SYSTEMS} >= EXPECTED
    for system in SYSTEMS:
        assert f"(../recipes/models/{system.name}.toml)" in documented()


def test_the_documentation_shows_the_table_of_today() -> None:
    """Where this fails, put what `make models` prints between the two marks of docs/models.md."""
    _, _, rest = documented().partition("<!-- parameters -->\n")
    shown, mark, _ = rest.partition("\n<!-- /parameters -->")
    assert mark
    assert shown == table(SYSTEMS)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_tiny_is_small(system: System) -> None:
    assert sum(system.tiny.values()) < 5_000_000
    assert sum(system.tiny.values()) < 0.1 * sum(system.base.values())


@pytest.mark.parametrize("system", PUBLISHED, ids=lambda system: system.name)
def test_base_has_the_published_number_of_parameters(system: System) -> None:
    """Or the reason why not, and then it must be one: an excuse that is not needed any more goes."""
    assert system.published
    assert system.agrees == (not system.published.differs), f"{system.comparable:,} of {system.published.number:,}"


def test_a_wrong_size_is_seen() -> None:
    """A layer more is further off than the tolerance."""
    values = tomllib.loads((RECIPES / "models" / "uniter.toml").read_text())
    uniter = next(system for system in SYSTEMS if system.name == "uniter")
    values["scales"]["base"]["encoder"]["blocks"][0]["repeat"] = 13
    assert uniter.agrees
    assert not System("uniter", values, uniter.shapes, uniter.published).agrees


def test_what_was_published_of_clip_is_what_open_clip_builds() -> None:
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
    clip = next(system for system in SYSTEMS if system.name == "clip")
    assert clip.published
    number = sum(parameter.numel() for parameter in theirs.parameters())
    assert abs(number - clip.published.number) <= clip.published.rounding


def test_twins_that_follow_are_not_counted() -> None:
    albef = next(system for system in SYSTEMS if system.name == "albef")
    model = albef.built("tiny")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(counts(model).values()) < sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("printed", "number", "rounding"), [("86M", 86e6, 5e5), ("87.4M", 87.4e6, 5e4), ("1.3B", 1.3e9, 5e7)]
)
def test_printed_numbers_are_read_with_their_rounding(printed: str, number: float, rounding: float) -> None:
    published = Published(printed, ("encoder",), "nobody")
    assert (published.number, published.rounding) == (pytest.approx(number), pytest.approx(rounding))
