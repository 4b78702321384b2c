"""The checks of `doctor`: facts about the machine, and what each finding means."""
