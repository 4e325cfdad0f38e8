"""Tokenizers: trained on the data or loaded, with a fingerprint."""
