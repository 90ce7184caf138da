"""What is kept, with captions, boxes, scores and metadata, in formats that other programs read: `pairmill export`.

A worker takes an image shard: it reads the shard's pairs (`staging`), its pictures and boxes (`reading`), and hands
each image (`images`) to the part of its split. A target (`parts`) says how a part is written, and what speaks of the
whole; `running` makes sure that the folder is whole or not there.
"""

TARGETS = ("webdataset", "parquet", "jsonl", "huggingface", "fiftyone", "open_clip")
