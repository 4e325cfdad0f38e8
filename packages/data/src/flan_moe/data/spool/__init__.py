"""Templated rows sorted by task: what `ingest` writes and task sources read."""
