"""Chains as SVG, DOT, Mermaid, and as an HTML page."""
