"""Its manifest takes its time."""
