"""Object tags: the names of what a detector saw in an image (Oscar's third input, the phrases of KD-VLP)."""

from collections.abc import Mapping, Sequence

import numpy as np


def tags(
    regions: Mapping[str, np.ndarray], labels: Sequence[str], limit: int | None = None, confidence: float = 0.0
) -> list[str]:
    """The `labels` of an image's regions, the most confident first and each once, at most `limit`.

    `regions` holds `classes` and `confidences` (n,) as the region extractor writes them (a store's row `.arrays`, or an
    image of a batch cut to its n); `labels` are the store's `identity["classes"]`. The whole image has no class and
    gives no tag. Regions below `confidence`, such as those that only filled an image up, give none either. Oscar (Li et
    al. 2020, section 3) takes the tags of all regions; each once is what its phrase of tags needs of them.
    """
    classes, confidences = regions["classes"], regions["confidences"]
    order = np.argsort(-confidences, kind="stable")
    named = (labels[classes[at]] for at in order if classes[at] >= 0 and confidences[at] >= confidence)
    return list(dict.fromkeys(named))[:limit]
