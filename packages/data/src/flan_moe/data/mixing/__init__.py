"""Mixing: which share of the samples each task gets, and why. Sizes in, numbers out; no data."""
