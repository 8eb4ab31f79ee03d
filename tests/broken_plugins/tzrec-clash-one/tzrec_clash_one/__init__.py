"""Offers a model that another plugin offers too."""
