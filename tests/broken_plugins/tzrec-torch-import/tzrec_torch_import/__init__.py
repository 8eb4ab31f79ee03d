"""Its manifest imports torch."""
