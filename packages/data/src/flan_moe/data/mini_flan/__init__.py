"""mini-Flan: 24 procedurally generated task families, six in the manner of each Flan mixture.

Everything is drawn from a few hundred words; nothing is downloaded. Six families are held out of
training; each builds on skills that the others teach:

====================  =========  ==============================================================
held-out family       mixture    related families in training
====================  =========  ==============================================================
``yes_no_qa``         muffin     ``reading_qa`` (the same stories), ``entailment`` (yes and no)
``odd_one_out``       t0_sf      ``word_category`` (kinds of things, choosing a word)
``extract_colours``   niv2       ``extract_kind`` (the same task for other kinds)
``remove_word``       niv2       ``replace_word``, ``count_word``
``object_counting``   cot        ``word_problem`` (sums), ``extract_kind`` (kinds of things)
``compare_totals``    cot        ``word_problem`` (sums), ``order_logic`` (more and less)
====================  =========  ==============================================================
"""

from flan_moe.data.mini_flan import cot, muffin, niv2, t0_sf
from flan_moe.data.mini_flan.family import MIXTURES, Family, Instance

TASK_FAMILIES: tuple[Family, ...] = (
    *muffin.FAMILIES,
    *t0_sf.FAMILIES,
    *niv2.FAMILIES,
    *cot.FAMILIES,
)


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: There is none.
    """
    for candidate in TASK_FAMILIES:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no task family {name!r}; expected one of {[f.name for f in TASK_FAMILIES]}")


__all__ = ["MIXTURES", "TASK_FAMILIES", "Family", "Instance", "family"]
