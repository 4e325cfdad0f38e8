"""Flan instruction-tuning data: readers, mini-Flan, shards, weighted mixtures, packing.

Names are imported when they are first used, so that ``import flan_moe.data`` is light and
``flan_moe.data.mini_flan`` needs nothing but the standard library.
"""

from importlib import import_module
from typing import Any

from flan_moe.data.__about__ import __version__

_HOME = {
    "BuildOptions": "build",
    "Curriculum": "mixing.curriculum",
    "Example": "example",
    "Manifest": "storage.manifest",
    "MixtureDataset": "streaming.mixture",
    "MixtureSpec": "mixing.spec",
    "PackedCollator": "packing",
    "RawOptions": "sources.raw",
    "PackOptions": "offline.pack",
    "PackedManifest": "offline.manifest",
    "Registry": "registry",
    "SubMixture": "mixing.spec",
    "TASK_FAMILIES": "mini_flan",
    "TextEncoder": "tokenization.tokenizer",
    "apply_mixture": "mixing.apply",
    "build_data_directory": "build",
    "build_mixture_dataset": "streaming.mixture",
    "convert_data_directory": "storage.convert",
    "dataloader": "streaming.loader",
    "explain_mixture": "mixing.explain",
    "load_mixture": "mixing.load",
    "load_registry": "registry",
    "load_tokenizer": "tokenization.tokenizer",
    "mini_flan_sources": "mini_flan.sources",
    "gather_statistics": "statistics.gather",
    "open_data_directory": "storage.manifest",
    "open_packed_directory": "offline.manifest",
    "pack_directory": "offline.pack",
    "pack_examples": "packing",
    "packed_dataloader": "offline.loader",
    "read_manifest": "storage.manifest",
    "read_mds": "storage.shards",
    "read_provenance": "storage.provenance",
    "read_task_table": "storage.task_table",
    "read_webdataset": "storage.shards",
    "save_tokenizer": "tokenization.tokenizer",
    "tokenizer_fingerprint": "tokenization.tokenizer",
    "train_tokenizer": "tokenization.tokenizer",
    "webdataset_loader": "streaming.web_loader",
    "write_mds": "storage.shards",
    "write_webdataset": "storage.shards",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
