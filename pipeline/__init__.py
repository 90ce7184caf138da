"""From URL lists to feature shards: one module a stage, in the order in which data flows."""
