"""Core: what travels between processes (sessions, batches, weights), and what every package needs."""
