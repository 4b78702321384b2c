"""Tests of the image with the real parts: Docker, pods, a CRI, Envoy."""
