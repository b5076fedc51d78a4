"""Measuring networks: the engine beside other engines, each in a process of its own, turn by turn."""
