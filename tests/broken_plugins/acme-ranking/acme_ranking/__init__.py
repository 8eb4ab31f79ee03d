"""Healthy: a loss, a metric, a sequence encoder, a feature and a reader of somebody else."""
