"""What scripts/docs.py writes, a module per kind of page. Nothing here imports torch."""
