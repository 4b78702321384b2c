"""The node agent: one process that keeps the plugin installed, knows the node's pods, and answers the plugin."""
