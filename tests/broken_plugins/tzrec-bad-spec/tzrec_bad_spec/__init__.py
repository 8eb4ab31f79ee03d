"""Its spec is wrong in several ways."""
