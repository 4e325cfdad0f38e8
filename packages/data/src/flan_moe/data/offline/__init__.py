"""Offline packing: a mixture drawn and packed beforehand, its rows stored and streamed."""
