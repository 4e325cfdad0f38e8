"""Whether a file's bytes are those that the catalogue names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flan_moe.data.fetch.catalogue import CatalogueFile

CHUNK_BYTES = 1 << 20


def difference(path: Path, expected: CatalogueFile) -> str | None:
    """What is wrong with a file's content, in words; None if nothing is."""
    size = path.stat().st_size
    if expected.bytes is not None and size != expected.bytes:
        return f"{size} bytes; expected {expected.bytes}"
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            blob.update(chunk)
            sha256.update(chunk)
    if expected.sha256 is not None and sha256.hexdigest() != expected.sha256:
        return f"sha256 is {sha256.hexdigest()}; expected {expected.sha256}"
    if blob.hexdigest() != expected.git_blob:
        return f"git blob is {blob.hexdigest()}; expected {expected.git_blob}"
    return None
