"""Models on this machine: lm.py loads one safely and runs it over a growing text."""
