"""Hugging Face models as :class:`flan_moe.eval.LanguageModel`."""
