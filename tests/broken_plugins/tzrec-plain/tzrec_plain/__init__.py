"""Healthy: a model whose settings are a dataclass."""
