"""Healthy: models of other tasks, to check their configs with."""
