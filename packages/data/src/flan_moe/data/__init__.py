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
    "Manifest": "manifest",
    "MixtureDataset": "mixture",
    "MixtureSpec": "mixing.spec",
    "PackedCollator": "packing",
    "RawOptions": "raw_sources",
    "PackOptions": "offline.pack",
    "PackedManifest": "offline.manifest",
    "Registry": "registry",
    "SubMixture": "mixing.spec",
    "TASK_FAMILIES": "mini_flan",
    "TextEncoder": "tokenizer",
    "apply_mixture": "mixing.apply",
    "build_data_directory": "build",
    "build_mixture_dataset": "mixture",
    "convert_data_directory": "convert",
    "dataloader": "loader",
    "explain_mixture": "mixing.explain",
    "load_mixture": "mixing.load",
    "load_registry": "registry",
    "load_tokenizer": "tokenizer",
    "mini_flan_sources": "mini_flan.sources",
    "gather_statistics": "statistics.gather",
    "open_data_directory": "manifest",
    "open_packed_directory": "offline.manifest",
    "pack_directory": "offline.pack",
    "pack_examples": "packing",
    "packed_dataloader": "offline.loader",
    "read_manifest": "manifest",
    "read_mds": "shards",
    "read_provenance": "provenance",
    "read_task_table": "task_table",
    "read_webdataset": "shards",
    "save_tokenizer": "tokenizer",
    "tokenizer_fingerprint": "tokenizer",
    "train_tokenizer": "tokenizer",
    "webdataset_loader": "web_loader",
    "write_mds": "shards",
    "write_webdataset": "shards",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
