"""Healthy: a loss, a metric, a sequence encoder, a feature, a reader and a callback of somebody else."""
