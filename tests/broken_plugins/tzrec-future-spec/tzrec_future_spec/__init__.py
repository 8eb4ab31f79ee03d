"""Offers a kind of spec that this core does not know, and a model."""
