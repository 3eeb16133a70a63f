"""Player: steps environments, uploads sessions, downloads weights; also evaluates, and lets a person play."""
