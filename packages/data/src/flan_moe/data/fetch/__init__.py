"""Brings public raw data from a catalogue of pinned locations."""
