"""Whole models for the model benchmark: ours and transformers', with the same weights."""
