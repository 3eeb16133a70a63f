"""Experiment: what the user writes (`experiment`), and how a command finds it (`loader`)."""
