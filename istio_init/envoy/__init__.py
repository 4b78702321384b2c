"""A connection's path through Envoy, from the configuration dump of a running Envoy."""
