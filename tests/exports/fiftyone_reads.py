"""Run by a Python that has fiftyone: `fiftyone_reads.py FOLDER` opens it as FiftyOneDataset and prints what it saw."""

import json
import sys

import fiftyone

dataset = fiftyone.Dataset.from_dir(dataset_dir=sys.argv[1], dataset_type=fiftyone.types.FiftyOneDataset)
try:
    dataset.compute_metadata(overwrite=True)  # opens the pictures
    samples = {
        sample.key: {
            "captions": [(pair.uid, pair.url, pair.text) for pair in sample.pairs],
            "words": sample.score_words,
            "metadata": [
                [
                    pair.metadata_licence,
                    pair.metadata_nsfw,
                    pair.metadata_photo,
                    pair.metadata_tags,
                    pair.metadata_polygons,
                ]
                for pair in sample.pairs
            ],
            "embedding": sample.metadata_embedding,
            "size": [sample.metadata.width, sample.metadata.height],
            "boxes": [(found.bounding_box, found.label) for found in sample.boxes_region.detections],
        }
        for sample in dataset
    }
    print()
    print(json.dumps({"tags": dataset.count_sample_tags(), "samples": samples}))
finally:
    dataset.delete()
