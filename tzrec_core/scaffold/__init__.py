"""What `tzrec new-plugin` writes."""

from tzrec_core.scaffold.plugin import TASKS, PluginNames, plugin_files

__all__ = ["TASKS", "PluginNames", "plugin_files"]
