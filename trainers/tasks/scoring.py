"""How well each text fits each image.

By the cosine in the joint space where the model has one (itc, vse); where it has a matching head as well, that judges
the best of each ranking again (ALBEF, section 3.3). Otherwise by the matching head alone, or VinVL's of three classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe, Objectives
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.data.batch import TextInput
from trainers.data.loader import VisionReader, text_input
from trainers.data.samples import Catalogue
from trainers.data.sequences import Sequences
from trainers.data.tags import image_tags
from trainers.data.text import Pieces
from trainers.loop.device import precision
from trainers.network.model import VisionLanguageModel
from trainers.network.streams import Stream, Streams
from trainers.objectives.itm import ImageTextMatching
from trainers.objectives.joint_space import JointSpace, cosines
from trainers.objectives.tag_contrast import OWN, ObjectTagContrast
from trainers.saved import SavedRun

PART = 16
"""How many texts, and how many images, are encoded at once; as many as PART * PART combinations meet in the fusion."""
BEYOND = 1 << 20
"""More positions than any image has: a text stands behind whatever image it is put to, where the order matters."""


def why_not(objectives: Objectives) -> str | None:
    """Why a model of these objectives cannot say how well a text fits an image; None where it can."""
    tags = objectives.tag_contrast
    if objectives.itc or objectives.vse or objectives.itm or (tags and tags.classes == 3):
        return None
    return "it is trained with none of itc, vse and itm, nor with tag_contrast of three classes"


def detector_of(dataset: Dataset, recipe: ModelRecipe) -> FeatureStore | None:
    """The features whose classes are the tags, where they are not the run's own."""
    if not recipe.text.tags or recipe.vision.kind == "region" or recipe.objects is None:
        return None
    return FeatureStore.open(dataset.root, recipe.objects)


@dataclass(frozen=True)
class ImageTags:
    """The object tags that stand behind a text in a model that reads them (Oscar): those of the image it is put to."""

    images: Catalogue
    tags: Sequences
    """Of each of `images`."""

    @classmethod
    def of(cls, saved: SavedRun, detector: FeatureStore) -> "ImageTags":
        return cls(Catalogue.of(detector), image_tags(detector, saved.tokenizer, saved.recipe.text.tags))

    def behind(self, keys: Sequence[str]) -> Sequences:
        """Of these images. Raises PairmillError where the detector has not seen one."""
        places = self.images.find(np.array([key.encode() for key in keys], np.bytes_))
        if (places < 0).any():
            raise PairmillError(
                f"the detector whose classes are the tags has not seen the image {keys[int(places.argmin())]}",
                "run `make extract` for the recipe's `objects`",
            )
        return self.tags.at(places)


@dataclass(frozen=True)
class Part:
    """Some of the texts, or of the images: their positions, and their states after the unimodal blocks."""

    positions: np.ndarray
    stream: Stream


@dataclass(frozen=True)
class Scorer:
    """A model at work on texts (token sequences) and images (keys in the store)."""

    model: VisionLanguageModel
    reader: VisionReader
    """Of the features that the model was trained on, or of the same stored otherwise."""
    device: torch.device
    pieces: Pieces | None = None
    """Of the model's tokenizer; None is one of `train_tokenizer`."""
    tags: ImageTags | None = None

    def __post_init__(self) -> None:
        self.model.to(self.device)  # not in inference mode, which would leave a training with tensors it cannot use

    @classmethod
    def of(
        cls, saved: SavedRun, store: FeatureStore, device: torch.device, detector: FeatureStore | None = None
    ) -> "Scorer":
        """For a finished run; `detector`: whose classes are the tags, where they are not `store`'s."""
        tags = ImageTags.of(saved, detector or store) if saved.recipe.text.tags else None
        return cls(saved.model, VisionReader(store, saved.recipe.vision), device, Pieces.of(saved.tokenizer), tags)

    @torch.inference_mode()
    def scores(self, tokens: Sequence[tuple[int, ...]], keys: Sequence[str], rerank: int | None = None) -> np.ndarray:
        """(texts, images) float32, all combinations; higher fits better.

        Where a model has a joint space and a matching head, what is among the `rerank` best images of a text or among
        the `rerank` best texts of an image by cosine is ranked by the head, before all others, which the cosine ranks;
        by default as many as its recipe says. Raises PairmillError for a model that cannot score.
        """
        self.model.eval()
        texts, images = list(self._texts(tokens)), list(self._images(keys))
        with precision(self.device):
            space = self._space()
            if space is None:
                return self._judged(tokens, keys, texts, images, np.ones((len(tokens), len(keys)), bool))
            similar = self._cosines(space, texts, images, (len(tokens), len(keys)))
            again = self.reranked if rerank is None else rerank
            if not again:
                return similar
            wanted = _best(similar, again) | _best(similar.T, again).T
            judged = self._judged(tokens, keys, texts, images, wanted)
        first = similar.max(initial=0) - judged[wanted].min(initial=0) + 1
        return np.where(wanted, judged + first, similar)

    @torch.inference_mode()
    def pairs(self, tokens: Sequence[tuple[int, ...]], keys: Sequence[str]) -> np.ndarray:
        """(pairs,) float32: each text with the image of the same row. A cosine, or the probability of a match."""
        self.model.eval()
        space = self._space()
        scores = np.zeros(len(tokens), np.float32)
        for rows in _by_length([len(sequence) for sequence in tokens]):
            those, theirs = [tokens[row] for row in rows], [keys[row] for row in rows]
            with precision(self.device):
                alone = {
                    "text": self._text_tower(self._text(those, None if space else theirs)),
                    "vision": self._vision_tower(theirs),
                }
                if space is None:
                    found = torch.sigmoid(self._match(self.model.encoder.crossing(alone)))
                else:
                    ends = [self._end(space, name, alone[name]) for name in ("text", "vision")]
                    found = (space.embed_text(ends[0]) * space.embed_vision(ends[1])).sum(1)
            scores[rows] = found.float().cpu().numpy()
        return scores

    def _space(self) -> JointSpace | None:
        """The joint space, if there is one. Raises PairmillError for a model that cannot score."""
        names = self.model.objectives
        for name in ("itc", "vse"):
            if name in names:
                return cast(JointSpace, self.model.objective(name))
        self._head()
        return None

    def _head(self) -> ImageTextMatching | ObjectTagContrast:
        for name in ("itm", "tag_contrast"):
            head = self.model.objective(name) if name in self.model.objectives else None
            if isinstance(head, ImageTextMatching) or (
                isinstance(head, ObjectTagContrast) and head.settings.classes == 3
            ):
                return head
        raise PairmillError(
            "the model cannot say whether a text fits an image: it has no joint space and no head for matching",
            "train it with itc, vse, itm, or tag_contrast of three classes",
        )

    @property
    def reranked(self) -> int:
        """How many of each ranking by cosine a matching head judges again, by the model's recipe; 0 is none."""
        if self._space() is None:
            return 0
        head = self.model.objective("itm") if "itm" in self.model.objectives else None
        return head.settings.rerank if isinstance(head, ImageTextMatching) else 0

    def _match(self, streams: Streams) -> Tensor:
        """(N,) logits of a match, of the encoder's last states."""
        head = self._head()
        logits = head.logits(streams).float()
        if isinstance(head, ImageTextMatching):
            return logits[:, 1] - logits[:, 0]
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[OWN] = False
        return logits[:, OWN] - logits[:, others].logsumexp(1)

    def _cosines(
        self, space: JointSpace, texts: Sequence[Part], images: Sequence[Part], shape: tuple[int, int]
    ) -> np.ndarray:
        found = np.zeros(shape, np.float32)
        embedded = [(image, space.embed_vision(self._end(space, "vision", image.stream))) for image in images]
        for text in texts:
            rows = space.embed_text(self._end(space, "text", text.stream))
            for image, columns in embedded:
                found[np.ix_(text.positions, image.positions)] = cosines(rows, columns).cpu().numpy()
        return found

    def _end(self, space: JointSpace, name: str, stream: Stream) -> Stream:
        """The states that the space projects."""
        return self.model.encoder.crossing({name: stream})[name] if space.settings.at == "end" else stream

    def _judged(
        self,
        tokens: Sequence[tuple[int, ...]],
        keys: Sequence[str],
        texts: Sequence[Part],
        images: Sequence[Part],
        wanted: np.ndarray,
    ) -> np.ndarray:
        """(texts, images) logits of a match where `wanted`, and 0 elsewhere."""
        found = np.zeros(wanted.shape, np.float32)
        for image in images:
            for text in texts:
                rows, columns = np.nonzero(wanted[np.ix_(text.positions, image.positions)])
                if not len(rows):
                    continue
                at = text.positions[rows], image.positions[columns]
                streams = {"vision": image.stream.select(torch.from_numpy(columns).to(self.device))}
                if self.tags is None:
                    streams["text"] = text.stream.select(torch.from_numpy(rows).to(self.device))
                else:  # the text is another one beside each image
                    whole = self._text([tokens[row] for row in at[0]], [keys[column] for column in at[1]])
                    streams["text"] = self._text_tower(whole)
                found[at] = self._match(self.model.encoder.crossing(streams)).cpu().numpy()
        return found

    def _text(self, tokens: Sequence[tuple[int, ...]], beside: Sequence[str] | None = None) -> TextInput:
        """As the model reads them, with the tags of the images that they are put beside."""
        tags = None if self.tags is None or beside is None else self.tags.behind(beside)
        return text_input(tokens, self.pieces, tags).to(self.device)

    def _texts(self, tokens: Sequence[tuple[int, ...]]) -> Iterator[Part]:
        for positions in _by_length([len(sequence) for sequence in tokens]):
            text = self._text([tokens[position] for position in positions])
            with precision(self.device):
                yield Part(positions, self._text_tower(text))

    def _images(self, keys: Sequence[str]) -> Iterator[Part]:
        for positions in _by_length(self.reader.store.gather(keys, columns=()).n.tolist()):
            with precision(self.device):
                yield Part(positions, self._vision_tower([keys[position] for position in positions]))

    def _text_tower(self, text: TextInput) -> Stream:
        return self.model.encoder.alone({"text": self.model.text(text, BEYOND)})["text"]

    def _vision_tower(self, keys: Sequence[str]) -> Stream:
        vision = self.model.vision(self.reader.read(keys).to(self.device))
        return self.model.encoder.alone({"vision": vision})["vision"]


def _best(scores: np.ndarray, number: int) -> np.ndarray:
    """(queries, answers) -> bool: the `number` best answers of each query."""
    if number >= scores.shape[1]:
        return np.ones(scores.shape, bool)
    best = np.zeros(scores.shape, bool)
    np.put_along_axis(best, np.argpartition(-scores, number - 1, axis=1)[:, :number], True, axis=1)
    return best


def _by_length(lengths: list[int]) -> Iterator[np.ndarray]:
    order = np.argsort(lengths, kind="stable")
    yield from (order[first : first + PART] for first in range(0, len(order), PART))
