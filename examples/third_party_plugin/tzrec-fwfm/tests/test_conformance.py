from tzrec_core.testing import PluginConformance


class TestPlugin(PluginConformance):
    plugin = "tzrec-fwfm"
