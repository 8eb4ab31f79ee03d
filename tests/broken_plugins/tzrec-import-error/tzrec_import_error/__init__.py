"""Its manifest imports what is not there."""
