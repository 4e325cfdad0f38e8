"""Mixing: which share of the samples each task gets, and why. Pure arithmetic, no data."""
