"""Experiment: what the user writes (`experiment`), and how commands find it (`loader`)."""
