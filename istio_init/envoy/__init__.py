"""A connection's way through Envoy, by the configuration that a running Envoy dumps."""
