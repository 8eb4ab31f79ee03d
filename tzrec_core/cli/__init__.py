"""The `tzrec` command: a thin layer over `tzrec_core.api`. Importing it never imports torch."""
