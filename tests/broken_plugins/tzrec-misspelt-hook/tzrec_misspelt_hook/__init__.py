"""Its hook has the wrong name."""
