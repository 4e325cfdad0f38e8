"""Finding a router by name: this package's presets, and those that others add.

A package adds one with an entry point in the group ``flan_moe.routers`` whose object is a
`RouterPreset`; it is then known in every process, by its entry point's name. Within one process
`register_router` does the same.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from flan_moe.routing.presets import PRESETS, RouterPreset

ENTRY_POINT_GROUP = "flan_moe.routers"

_registered: dict[str, RouterPreset] = {}


def register_router(name: str, preset: RouterPreset) -> None:
    """Make a router known under a name in this process.

    Raises:
        TypeError: if it is no name, or no preset.
        ValueError: if the name is taken by another preset.
    """
    if not isinstance(name, str):
        raise TypeError(f"register_router({name!r}): expected a name")
    if not isinstance(preset, RouterPreset):
        raise TypeError(f"register_router({name!r}): expected a RouterPreset, got {preset!r}")
    taken = PRESETS.get(name) or _registered.get(name)
    if taken is not None and taken is not preset:
        raise ValueError(f"register_router({name!r}): the name is taken")
    _registered[name] = preset


def router_names() -> tuple[str, ...]:
    """Every known name: those of this package, then registered ones, then installed ones."""
    installed = entry_points(group=ENTRY_POINT_GROUP).names
    return tuple(dict.fromkeys((*PRESETS, *_registered, *sorted(installed))))


def find_router(name: str) -> RouterPreset:
    """The preset of a name.

    Raises:
        ValueError: if there is none, with the known names and the closest one.
    """
    preset = PRESETS.get(name) or _registered.get(name)
    if preset is not None:
        return preset
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        preset = entry.load()
        if not isinstance(preset, RouterPreset):
            raise ValueError(
                f"router {name!r}: entry point {entry.value!r} is not a RouterPreset but {preset!r}"
            )
        return preset
    close = difflib.get_close_matches(str(name), router_names(), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(
        f"router option name={name!r}: expected one of {', '.join(map(repr, router_names()))}{hint}"
    )
