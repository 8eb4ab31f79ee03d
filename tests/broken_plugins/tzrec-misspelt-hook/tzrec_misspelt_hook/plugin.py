"""The manifest."""

from tzrec_core.plugins import hookimpl


@hookimpl
def tzrec_spec() -> list[object]:
    """Lack an s."""
    return []
