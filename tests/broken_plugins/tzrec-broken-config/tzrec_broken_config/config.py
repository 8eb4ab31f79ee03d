"""Settings that cannot be had."""

raise RuntimeError("the config of this plugin was eaten")
