"""mini-Flan: 24 procedurally generated task families, six in the manner of each Flan mixture.

Everything is drawn from a few hundred words; nothing is downloaded. Six families are held out of
training. For four of them the whole cluster is, as in FLAN: nothing that is trained asks for the
same, though it teaches words and skills that help. Two are siblings of a trained family.

===================  =======  ====================  ===========================================
held-out family      mixture  group                 related families in training
===================  =======  ====================  ===========================================
``entailment``       muffin   ``held_out``          ``reading_qa`` (people and places)
``odd_one_out``      t0_sf    ``held_out``          ``word_category`` (kinds of things)
``count_word``       niv2     ``held_out``          ``remove_word`` (a word and a list)
``order_logic``      cot      ``held_out``          ``paraphrase`` (some of its relations)
``yes_no_qa``        muffin   ``held_out_sibling``  ``reading_qa`` (the same stories)
``extract_colours``  niv2     ``held_out_sibling``  ``extract_kind`` (the same definitions)
===================  =======  ====================  ===========================================
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


def group_of(family: Family) -> str:
    """``"held_in"``; ``"held_out"``, with its whole cluster; or ``"held_out_sibling"``."""
    if not family.held_out:
        return "held_in"
    trained = {other.cluster for other in TASK_FAMILIES if not other.held_out}
    return "held_out_sibling" if family.cluster in trained else "held_out"


__all__ = ["MIXTURES", "TASK_FAMILIES", "Family", "Instance", "family", "group_of"]
