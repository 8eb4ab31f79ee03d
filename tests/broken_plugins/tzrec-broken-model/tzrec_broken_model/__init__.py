"""Its model module does not import."""
