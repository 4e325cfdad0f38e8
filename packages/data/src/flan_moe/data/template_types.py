"""The four settings of a prompt that the Flan collection counts by.

Zero-shot or few-shot, with the answer options listed or not (google-research/FLAN, flan/v2). The
``template`` of an example and of a stored sample starts with one of them, followed by how exactly
it was worded: ``"fs_opt/definition_examples/3"``.
"""

from __future__ import annotations

ZS_OPT, ZS_NOOPT, FS_OPT, FS_NOOPT = "zs_opt", "zs_noopt", "fs_opt", "fs_noopt"
TEMPLATE_TYPES = (ZS_OPT, ZS_NOOPT, FS_OPT, FS_NOOPT)


def template_type(template: str) -> str:
    """The setting that a template's name starts with.

    Raises:
        ValueError: It starts with none of them.
    """
    head = template.partition("/")[0]
    if head not in TEMPLATE_TYPES:
        raise ValueError(
            f"template {template!r}: expected it to start with one of {', '.join(TEMPLATE_TYPES)}"
        )
    return head
