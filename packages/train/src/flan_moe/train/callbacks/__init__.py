"""Composer callbacks: reproducible steps, checkpoints, router measurements, progress, metrics."""
