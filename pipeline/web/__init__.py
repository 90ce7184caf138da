"""The open web, kept at arm's length: what `download` fetches with, and how a shard of images is made."""
