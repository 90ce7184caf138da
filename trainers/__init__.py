"""From feature shards to models: samples -> batches -> embeddings -> encoder -> objectives -> retrieval."""
