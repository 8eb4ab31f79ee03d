"""The two hooks of a plugin: the whole contract between tzrec and the packages that extend it."""

from typing import TYPE_CHECKING

import pluggy

from tzrec_core.plugins.spec import Spec

if TYPE_CHECKING:
    import typer

PROJECT = "tzrec"
ENTRY_POINT_GROUP = "tzrec.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def tzrec_specs() -> list[Spec]:  # type: ignore[empty-body]
    """Return what the plugin offers; called once, at discovery, and must not import torch."""


@hookspec
def tzrec_commands(app: "typer.Typer") -> None:
    """Add commands to `app`, which is mounted as `tzrec <entry-point name> ...`."""
