"""The plugin's own tests run where it is installed: on a fresh copy, by ``test_plugin.py``."""

collect_ignore = ["package"]
