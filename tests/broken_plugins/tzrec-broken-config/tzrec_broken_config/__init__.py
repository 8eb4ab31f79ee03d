"""Its config module does not import."""
