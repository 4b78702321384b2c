"""The checks of `doctor`: what is collected, and what each finding means."""
