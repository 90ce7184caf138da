"""Recipes: what is off is named, with the file, the key and what is allowed."""

from pathlib import Path

import pytest

from pipeline.errors import PairmillError
from pipeline.model_recipe import laid_over
from pipeline.recipe import Recipe, load

WHOLE = """
name = "t"
[ingest]
inputs = ["a.csv"]
[extract.boxes]
kind = "region"
[extract.grid]
kind = "grid"
[train.run]
features = "boxes"
steps = 3
vision = {kind = "region"}
objectives = {mlm = {}}
batch = {size = 4}
optimizer = {learning_rate = 1e-3}
encoder = {hidden = 8, heads = 2, feedforward = 8, blocks = [{attention = [["text-text"]], weights = "shared"}]}
"""


def put(folder: Path, text: str, name: str = "t.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(PairmillError) as error:
        load(put(folder, text))
    return str(error.value)


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    recipe = load(put(tmp_path, WHOLE))
    assert (recipe.name, set(recipe.extract), recipe.train["run"].steps) == ("t", {"boxes", "grid"}, 3)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "recipes").glob("*.toml")), ids=lambda path: path.name
)
def test_the_recipes_of_the_repository_are_valid(path: Path) -> None:
    assert load(path).name


@pytest.mark.parametrize(
    ("text", "key", "allowed"),
    [
        ("bogus = 1\n" + WHOLE, "bogus", ["name", "ingest", "screen", "train"]),
        (WHOLE.replace("inputs", "bogus = 1\ninputs"), "ingest.bogus", ["inputs", "url_column", "shards"]),
        (WHOLE + "[download]\nbogus = 1", "download.bogus", ["timeout", "max_bytes"]),
        (WHOLE + "[split]\nbogus = 1", "split.bogus", ["train", "validation", "test"]),
        (WHOLE + "[engine]\nbogus = 1", "engine.bogus", ["workers"]),
        (WHOLE + "[screen]\nbogus = 1", "screen.bogus", ["rules"]),
        (
            WHOLE.replace('kind = "region"\n', 'kind = "region"\nbogus = 1\n'),
            "extract.boxes.bogus",
            ["min_boxes", "weights"],
        ),
        (WHOLE.replace('kind = "grid"', 'kind = "grid"\nbogus = 1'), "extract.grid.bogus", ["cells", "model"]),
        (WHOLE + '[extract.region]\nkind = "pixel"\nbogus = 1', "extract.region.bogus", ["patch", "image_size"]),
        (WHOLE.replace("steps = 3", "steps = 3\nbogus = 1"), "train.run.bogus", ["steps", "encoder", "objectives"]),
        (
            WHOLE.replace("hidden = 8", "bogus = 1, hidden = 8"),
            "train.run.encoder.bogus",
            ["hidden", "heads", "blocks"],
        ),
        (
            WHOLE.replace("weights =", "bogus = 1, weights ="),
            "train.run.encoder.blocks.0.bogus",
            ["attention", "repeat"],
        ),
        (WHOLE.replace("mlm = {}", "mlm = {bogus = 1}"), "train.run.objectives.mlm.bogus", ["probability", "weight"]),
        (WHOLE.replace("mlm = {}", "bogus = {}"), "train.run.objectives.bogus", ["mlm", "itm"]),
        (WHOLE.replace("size = 4", "size = 4, bogus = 1"), "train.run.batch.bogus", ["size", "tokens"]),
        (
            WHOLE.replace('{kind = "region"}', '{kind = "region", bogus = 1}'),
            "train.run.vision.bogus",
            ["box", "sample"],
        ),
    ],
)
def test_an_unknown_key_is_named_with_those_that_are_allowed_there(
    tmp_path: Path, text: str, key: str, allowed: list[str]
) -> None:
    said = refusal(tmp_path, text)
    assert f"t.toml: {key}: unknown key; allowed here: " in said
    listed = said.split("allowed here: ")[1].split("\n")[0].split(", ")
    assert set(allowed) <= set(listed)
    assert "bogus" not in listed


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name = 7", "name"),
        ("name = ''", "name"),
        ("name = 'A b'", "name"),
        ("[ingest]\ninputs = ['a.csv']", "name"),
        (WHOLE.replace('["a.csv"]', '"a.csv"'), "ingest.inputs"),
        (WHOLE.replace('["a.csv"]', "[]"), "ingest.inputs"),
        (WHOLE.replace('["a.csv"]', "[1]"), "ingest.inputs.0"),
        (WHOLE.replace('inputs = ["a.csv"]', "shards = 2"), "ingest.inputs"),
        (WHOLE.replace("[ingest]", "ingest = 3\n[x]"), "ingest"),
        (WHOLE + "[download]\nthreads = 'many'", "download.threads"),
        (WHOLE + "[download]\nthreads = 0", "download.threads"),
        (WHOLE + "[download]\nschemes = ['file']", "download.schemes.0"),
        (WHOLE + "[download]\ntimeout = 0", "download.timeout"),
        (WHOLE + "[download]\ntimeout = nan", "download.timeout"),
        (WHOLE + "[download]\ntimeout = inf", "download.timeout"),
        (WHOLE + "[download]\nmax_megapixels = nan", "download.max_megapixels"),
        (WHOLE + "[split]\ntrain = 0.5", "split"),
        (WHOLE + "[split]\ntrain = -1", "split.train"),
        (WHOLE + "[screen.rules]\nmin_words = 'three'", "screen.rules"),
        (WHOLE + "[screen.rules]\nmin_words = nan", "screen.rules"),
        (WHOLE + "[screen.rules]\nmin_words = inf", "screen.rules"),
        (WHOLE + "[screen]\nrules = 3", "screen.rules"),
        (WHOLE + "[engine]\nworkers = -1", "engine.workers"),
        (WHOLE + "[engine]\nmemory_limit = 'banana'", "engine.memory_limit"),
        (WHOLE + "[extract.more]\ncells = 3", "extract.more"),
        (WHOLE + "[extract.more]\nkind = 'sound'", "extract.more"),
        (WHOLE + "[extract.'../more']\nkind = 'grid'", "extract.../more"),
        (WHOLE + "[extract.region]\nkind = 'region'\nimage_size = 100", "extract.region.image_size"),
        (WHOLE + "[extract.p]\nkind = 'pixel'\nimage_size = 100", "extract.p"),
        (WHOLE.replace("hidden = 8", "hidden = 9"), "train.run.encoder"),
        (WHOLE.replace("steps = 3", "steps = 'x'"), "train.run.steps"),
        (WHOLE.replace("steps = 3\n", ""), "train.run.steps"),
        (WHOLE.replace('"text-text"', '"text-sound"'), "train.run.encoder.blocks.0.attention.0.0"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    assert f"t.toml: {key}: " in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("section", "rule", "allowed"),
    [
        ("screen", "min_word", "min_words"),
        ("screen", "side_above", "vocabulary"),
        ("filter", "min_words", "side_above, min_side"),
    ],
)
def test_an_unknown_rule_is_named_with_the_stages_own(tmp_path: Path, section: str, rule: str, allowed: str) -> None:
    said = refusal(tmp_path, WHOLE + f"[{section}.rules]\n{rule} = 3")
    assert repr(rule) in said
    assert allowed in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[screen.rules]\nmine = { keep_if = 'true' }\n[filter.rules]\nmine = { keep_if = 'true' }",
            "name one otherwise",
        ),
        ("[screen.rules]\nrepeated_pair = { keep_if = 'true' }", "name yours otherwise"),
        ("[screen.rules]\nmin_words = { keep_if = 'true' }", "name yours otherwise"),
        ("[screen.rules]\nmine = { keepif = 'true' }", "takes { keep_if"),
        ("[screen.rules]\nmine = { keep_if = ' ' }", "takes { keep_if"),
        ("[screen.rules]\nlanguages = ['EN']", "lower case"),
        ("[screen.rules]\nno_email = 3", "takes true"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, WHOLE + text)


def test_features_that_no_extractor_makes_are_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, WHOLE.replace('features = "boxes"', 'features = "absent"'))
    assert "train.run: features 'absent'" in said
    assert "boxes, grid" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [("name = ", "not TOML"), ("<html>", "not TOML"), ("[a]\n[a]\n", "not TOML"), ("name = 'x'\0", "not TOML")],
)
def test_what_is_not_toml_is_said_so(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_a_recipe_that_is_not_utf8_or_not_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_bytes(b"name = '\xff'")
    for path, said in (
        (tmp_path / "t.toml", "not TOML"),
        (tmp_path / "absent.toml", "cannot read"),
        (tmp_path, "cannot"),
    ):
        with pytest.raises(PairmillError, match=said) as error:
            load(path)
        assert str(path) in str(error.value)


def test_extends_lays_one_recipe_over_another(tmp_path: Path) -> None:
    put(tmp_path, WHOLE + "[screen.rules]\nmin_words = 3\nmax_words = 9", "base.toml")
    (tmp_path / "sub").mkdir()
    path = put(tmp_path / "sub", 'extends = "../base.toml"\nname = "over"\n[screen.rules]\nmax_words = 5\n')
    recipe = load(path)
    assert recipe.name == "over"
    assert recipe.screen.rules == {"min_words": 3, "max_words": 5}
    assert recipe.ingest == load(tmp_path / "base.toml").ingest


def test_a_model_file_is_found_beside_the_recipe_that_names_it(tmp_path: Path) -> None:
    head, _, run = WHOLE.partition("[train.run]\n")
    (tmp_path / "models").mkdir()
    put(tmp_path / "models", run, "m.toml")
    put(tmp_path, head + '[train.run]\nmodel = "models/m.toml"\nsteps = 5', "base.toml")
    (tmp_path / "sub").mkdir()
    over = put(tmp_path / "sub", 'extends = "../base.toml"\n[train.run]\nseed = 7')
    run_recipe = load(over).train["run"]
    assert (run_recipe.steps, run_recipe.seed, run_recipe.encoder.hidden) == (5, 7, 8)


def test_an_extended_recipe_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "absent.toml" in refusal(tmp_path, 'extends = "absent.toml"')
    assert "absent.toml" in refusal(tmp_path, WHOLE + '[train.more]\nmodel = "absent.toml"')


@pytest.mark.parametrize("value", ["3", "['t.toml']", "true", "''"])
def test_extends_of_another_type_is_refused(tmp_path: Path, value: str) -> None:
    assert "cannot read" in refusal(tmp_path, f"extends = {value}")


def test_a_cycle_of_recipes_is_refused(tmp_path: Path) -> None:
    put(tmp_path, 'extends = "b.toml"', "a.toml")
    put(tmp_path, 'extends = "./a.toml"', "b.toml")
    assert "extends itself" in refusal(tmp_path, 'extends = "a.toml"')
    assert "extends itself" in refusal(tmp_path, 'extends = "t.toml"')


def test_merging_goes_table_by_table_and_changes_neither() -> None:
    base, over = {"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"y": [3]}, "c": {"z": 1}}
    assert laid_over(base, over) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": {"z": 1}}
    assert (base, over) == ({"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"y": [3]}, "c": {"z": 1}})


def test_the_sections_of_a_recipe_are_frozen(tmp_path: Path) -> None:
    recipe: Recipe = load(put(tmp_path, WHOLE))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]
