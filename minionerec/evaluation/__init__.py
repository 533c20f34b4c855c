"""Metrics, statistics, ranking and what was measured."""
