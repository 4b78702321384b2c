"""Rules, routes, packets and counters as immutable values; which rules are Istio's, and how two rulesets differ."""
