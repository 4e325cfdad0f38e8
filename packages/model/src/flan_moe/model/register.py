"""Make the Auto classes of transformers know Flan-MoE checkpoints."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForSeq2SeqLM

from flan_moe.model.config import FlanMoEConfig
from flan_moe.model.modeling import FlanMoEForConditionalGeneration


def register_auto_classes() -> None:
    """Register config and model with `AutoConfig` and `AutoModelForSeq2SeqLM`; idempotent.

    Programs that load any model by path, and know nothing of this package, find this function
    under the entry-point group ``flan_moe.register_auto`` and call it first.
    """
    AutoConfig.register(FlanMoEConfig.model_type, FlanMoEConfig, exist_ok=True)
    AutoModelForSeq2SeqLM.register(FlanMoEConfig, FlanMoEForConditionalGeneration, exist_ok=True)
