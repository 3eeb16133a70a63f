"""Trainer: reads sessions, learns, publishes weights, keeps checkpoints."""
