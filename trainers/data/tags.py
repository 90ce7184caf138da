"""Object tags as tokens: what a detector saw in an image, behind the caption (Oscar, section 3)."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.store.features import FeatureStore
from trainers.data.sequences import Sequences
from trainers.data.text import special_tokens

IMAGES_AT_ONCE = 4096


def class_tokens(tokenizer: Tokenizer, labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The token numbers of each class name, without [CLS] and [SEP]."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # The blank makes a name begin a word where that is marked at a word's start.
    encoded = tokenizer.encode_batch([f" {label}" for label in labels], add_special_tokens=False)
    return tuple(tuple(name.ids) for name in encoded)


def image_tags(store: FeatureStore, tokenizer: Tokenizer, limit: int) -> Sequences:
    """The tags of each image of `store`, in order of key, and [SEP]: at most `limit` tokens.

    The names of the regions' classes, the most confident first, each once (as `pipeline.store.tags`), as many as fit
    whole. Raises PairmillError where the features are no detector's.
    """
    labels = store.identity.get("classes") or ()
    if not labels or not {"classes", "confidences"} <= store.columns.keys():
        raise PairmillError(
            f"{store.identity['model']} names no objects: its features have no classes",
            "name a region extractor in `objects`, or set text.tags = 0",
        )
    places = {name: place for place, name in reversed(list(enumerate(labels)))}
    same_name = np.array([places[name] for name in labels])
    dtype = np.min_scalar_type(tokenizer.get_vocab_size())
    names = Sequences.of(class_tokens(tokenizer, labels), dtype)
    lengths, tokens = [np.empty(0, np.int64)], [np.empty(0, dtype)]
    for images in store.stream(IMAGES_AT_ONCE, columns=("classes", "confidences"), where=None):
        shown = np.where(np.arange(images["classes"].shape[1]) < images.n[:, None], images["classes"], -1)
        if shown.max(initial=-1) >= len(labels):
            raise PairmillError(
                f"a region near image {images.keys[0]} is of class {shown.max()}, and the detector knows {len(labels)}",
                "run `make extract` again",
            )
        chosen = _ranked(np.where(shown >= 0, same_name[shown], -1), images["confidences"])
        sizes = np.where(chosen >= 0, names.lengths[chosen], 0)
        fits = (chosen >= 0) & (sizes.cumsum(1) < limit)
        lengths.append((sizes * fits).sum(1))
        tokens.append(names.at(chosen[fits]).tokens)
    counts = np.concatenate(lengths)
    starts = np.concatenate([[0], np.cumsum(counts)])
    ends = Sequences(np.full(len(counts), special_tokens(tokenizer).sep, dtype), np.arange(len(counts) + 1))
    return Sequences(np.concatenate(tokens), starts).before(ends)


def _ranked(classes: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """(B, n) classes, -1 for none, in order of falling confidence; what has come before in its row is -1 as well."""
    order = np.argsort(np.where(classes >= 0, -confidences, np.inf), axis=1, kind="stable")
    ranked = np.take_along_axis(classes, order, 1)
    by_class = np.argsort(ranked, axis=1, kind="stable")
    sorted_classes = np.take_along_axis(ranked, by_class, 1)
    repeated = np.zeros(ranked.shape, bool)
    np.put_along_axis(repeated, by_class[:, 1:], sorted_classes[:, 1:] == sorted_classes[:, :-1], 1)
    return np.where(repeated, -1, ranked)
