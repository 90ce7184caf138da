"""The dataset on disk: folders of shards with manifests, the SQL views over them, and the feature store."""
