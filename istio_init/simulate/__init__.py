"""The path of one packet through the rules, with the reason for each step."""
