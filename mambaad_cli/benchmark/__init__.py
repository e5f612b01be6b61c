"""Metrics, evaluation, speed and comparison, and their tables."""
