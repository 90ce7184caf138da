"""Checkpoints of `transformers` in our encoders: our blocks are theirs, to the last state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import (
    DUAL,
    SINGLE,
    bert,
    built,
    change_configuration,
    lxmert,
    recipe,
    roberta,
    visualbert,
)
from safetensors.torch import load_file, save_file
from synthetic import CROSS, OWN, random_batch
from torch import Tensor

from pipeline.errors import PairmillError
from trainers.network.model import VisionLanguageModel
from trainers.weights import checkpoint_digest, initialise, tokenizer_file

REGIONS = {"kind": "region", "standardize": False}
TEXT_ONLY = [{"repeat": 3, "attention": [["text-text"]], "weights": "separate"}]


def loaded(folder: Path, blocks: list[dict[str, Any]], **over: Any) -> VisionLanguageModel:
    made = recipe(folder, blocks, **over)
    model = built(made)
    initialise(model, made)
    return model


def assert_same(ours: Tensor, theirs: Tensor, present: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs[present].std() > 0.3  # or everything would be the same
    torch.testing.assert_close(ours[present], theirs[present], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_visualbert_s_states_are_those_of_our_single_stream(tmp_path: Path, seed: int) -> None:
    peer = visualbert(tmp_path)
    model = loaded(tmp_path, SINGLE, vision={**REGIONS, "box": 0, "norms": ["sum"]})
    batch = random_batch(seed)
    assert batch.text
    assert batch.vision
    assert not batch.text.present.all()
    assert not batch.vision.present.all()
    theirs = peer.visual_bert(
        input_ids=batch.text.tokens,
        attention_mask=batch.text.present.float(),
        visual_embeds=batch.vision.values(),
        visual_attention_mask=batch.vision.present.float(),
    ).last_hidden_state
    ours = model.encode(batch.text, batch.vision)
    length = batch.text.tokens.shape[1]
    assert_same(ours["text"].states, theirs[:, :length], batch.text.present)
    assert_same(ours["vision"].states, theirs[:, length:], batch.vision.present)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_lxmert_s_states_are_those_of_our_dual_stream(tmp_path: Path, seed: int) -> None:
    peer = lxmert(tmp_path)
    model = loaded(tmp_path, DUAL, vision={**REGIONS, "box": 4, "norms": ["parts"]})
    batch = random_batch(seed)
    assert batch.text
    assert batch.vision
    theirs = peer.lxmert(
        input_ids=batch.text.tokens,
        attention_mask=batch.text.present.float(),
        visual_feats=batch.vision.values(),
        visual_pos=batch.vision.boxes,
        visual_attention_mask=batch.vision.present.float(),
    )
    ours = model.encode(batch.text, batch.vision)
    assert_same(ours["text"].states, theirs.language_output, batch.text.present)
    assert_same(ours["vision"].states, theirs.vision_output, batch.vision.present)


@pytest.mark.parametrize(("family", "epsilon"), [(bert, 1e-12), (roberta, 1e-5)])
@torch.no_grad()
def test_bert_s_and_roberta_s_states_are_those_of_a_stack_of_text(tmp_path: Path, family: Any, epsilon: float) -> None:
    peer = family(tmp_path)
    model = loaded(tmp_path, TEXT_ONLY, epsilon=epsilon)
    text = random_batch(0).text
    assert text
    padding = peer.config.pad_token_id
    theirs = peer.base_model(
        input_ids=text.tokens.masked_fill(~text.present, padding), attention_mask=text.present.long()
    ).last_hidden_state
    ours = model.encode(text, None)["text"].states
    assert_same(ours, theirs, text.present)
    whole = peer(input_ids=text.tokens.masked_fill(~text.present, padding), attention_mask=text.present.long()).logits
    head: Any = model.objective("mlm")
    torch.testing.assert_close(head.logits(model, ours[text.present]), whole[text.present], atol=1e-3, rtol=0)


@torch.no_grad()
def test_bert_begins_single_streams_and_the_text_of_two(tmp_path: Path) -> None:
    peer = bert(tmp_path)
    text = random_batch(0).text
    assert text
    theirs = peer.bert(input_ids=text.tokens, attention_mask=text.present.long()).last_hidden_state
    dual = [{"repeat": 3, "attention": [OWN, CROSS], "weights": "separate"}]
    for blocks in (SINGLE, dual):
        model = loaded(tmp_path, blocks)
        before = built(recipe(tmp_path, blocks))
        assert_same(model.encode(text, None)["text"].states, theirs, text.present)
        changed = {
            name
            for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
            if not torch.equal(new, old)
        }
        assert not any(name.startswith("vision.") or ".vision." in name for name in changed)
        assert not any(".attention.1." in name for name in changed)


@torch.no_grad()
def test_a_longer_stack_begins_with_the_checkpoint_and_a_shorter_one_takes_its_first_layers(tmp_path: Path) -> None:
    peer = bert(tmp_path, layers=2)
    text = random_batch(1).text
    assert text
    states = peer.bert(
        input_ids=text.tokens, attention_mask=text.present.long(), output_hidden_states=True
    ).hidden_states
    shorter = loaded(tmp_path, [{**TEXT_ONLY[0], "repeat": 1}])
    assert_same(shorter.encode(text, None)["text"].states, states[1], text.present)
    longer = loaded(tmp_path, TEXT_ONLY)
    longer.encoder.blocks = longer.encoder.blocks[:2]
    longer.encoder.first_crossing = 2
    assert_same(longer.encode(text, None)["text"].states, states[2], text.present)


@torch.no_grad()
def test_names_of_tensorflow_s_layer_norms_are_read(tmp_path: Path) -> None:
    bert(tmp_path)
    new = loaded(tmp_path, TEXT_ONLY).state_dict()
    path = tmp_path / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(renamed, path)
    old = loaded(tmp_path, TEXT_ONLY).state_dict()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_nothing_is_changed_without_a_checkpoint() -> None:
    made = recipe(Path("nowhere"), SINGLE, text={"vocabulary": 100})
    model = built(made)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialise(model, made)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert checkpoint_digest(made) is None
    assert tokenizer_file(made) is None


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"encoder.heads": 2}, "set encoder.heads = 3"),
        ({"encoder.hidden": 12}, "set encoder.hidden = 24"),
        ({"encoder.feedforward": 8}, "set encoder.feedforward = 40"),
        ({"encoder.epsilon": 1e-6}, "set encoder.epsilon = 1e-12"),
        ({"encoder.norm": "pre"}, 'set encoder.norm = "post"'),
        ({"text.max_tokens": 33}, "lower text.max_tokens"),
    ],
)
def test_a_recipe_that_does_not_fit_is_told_what_to_change(tmp_path: Path, over: dict[str, Any], says: str) -> None:
    bert(tmp_path)
    values = recipe(tmp_path, SINGLE).model_dump()
    for key, value in over.items():
        section, name = key.split(".")
        values[section][name] = value
    made = recipe(tmp_path, SINGLE).model_validate(values)
    with pytest.raises(PairmillError, match=says):
        initialise(built(made), made)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": ["bert"]}, "bert"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 5}, "has no tensor bert.encoder.layer.3"),
        ({"hidden_act": "relu"}, "hidden_act = relu"),
        ({"position_embedding_type": "relative_key"}, "variant"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    bert(tmp_path)
    change_configuration(tmp_path, **changes)
    made = recipe(tmp_path, [{**TEXT_ONLY[0], "repeat": 5}])
    with pytest.raises(PairmillError, match=says):
        initialise(built(made), made)


def test_a_whole_model_must_have_the_checkpoint_s_shape(tmp_path: Path) -> None:
    visualbert(tmp_path)
    vision = {**REGIONS, "box": 0, "norms": ["sum"]}
    for blocks, over, says in (
        ([{**SINGLE[0], "repeat": 2}], {"vision": vision}, "3 layers, the recipe 2"),
        (SINGLE, {"vision": {**vision, "box": 4}}, "has nothing for vision.box"),
        (DUAL[:2], {"vision": vision}, "has nothing for encoder.blocks.2"),
    ):
        with pytest.raises(PairmillError, match=says):
            loaded(tmp_path, blocks, **over)


def test_a_tokenizer_of_more_pieces_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    bert(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.embeddings.word_embeddings.weight"] = tensors["bert.embeddings.word_embeddings.weight"][:50].clone()
    save_file(tensors, path)
    with pytest.raises(PairmillError, match="has 50 pieces, and the tokenizer 60"):
        loaded(tmp_path, TEXT_ONLY)


def test_damaged_and_unsafe_files_are_refused(tmp_path: Path) -> None:
    bert(tmp_path)
    path, configuration = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, said = path.read_bytes(), configuration.read_bytes()
    for damaged in (b"", whole[:100], b"\xff" * 64, whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(PairmillError, match=r"cannot read .*model\.safetensors"):
            loaded(tmp_path, TEXT_ONLY)
    path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch bad'\ntR.")
    with pytest.raises(PairmillError, match=r"pytorch_model\.bin; pickles are not read"):
        loaded(tmp_path, TEXT_ONLY)
    path.write_bytes(whole)
    for damaged in (b"", b"[]", b"[" * 100_000, b"\xff", b" " * (2 << 20)):
        configuration.write_bytes(damaged)
        with pytest.raises(PairmillError, match=r"cannot read .*config\.json"):
            loaded(tmp_path, TEXT_ONLY)
    configuration.write_bytes(said)
    tensors = load_file(path)
    tensors["bert.encoder.layer.1.output.dense.bias"][3] = float("nan")
    save_file(tensors, path)
    with pytest.raises(PairmillError, match=r"encoder\.layer\.1\.output\.dense\.bias is not finite"):
        loaded(tmp_path, TEXT_ONLY)


def test_the_digest_follows_the_contents_and_the_tokenizer_is_the_checkpoint_s(tmp_path: Path) -> None:
    bert(tmp_path)
    made = recipe(tmp_path, SINGLE)
    first = checkpoint_digest(made)
    assert first == checkpoint_digest(made)
    with pytest.raises(PairmillError, match=r"has no tokenizer\.json"):
        tokenizer_file(made)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert tokenizer_file(made) == str(tmp_path / "tokenizer.json")
    change_configuration(tmp_path, hidden_act="gelu_new")
    assert checkpoint_digest(made) != first
    (tmp_path / "config.json").unlink()
    with pytest.raises(PairmillError, match=r"there is no .*config\.json"):
        checkpoint_digest(made)
