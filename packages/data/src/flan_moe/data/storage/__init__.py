"""Data directories on disk: shards, tables, manifest and provenance, written once and verified."""
