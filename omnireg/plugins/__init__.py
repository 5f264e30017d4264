"""The plugin host: finds and loads plugins, guards against them, and knows what they offer."""

from omnireg.plugins.host import DISABLE_VARIABLE, PluginHost, Strategy

__all__ = ["DISABLE_VARIABLE", "PluginHost", "Strategy"]
