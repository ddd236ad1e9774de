"""Models on this machine: loading.py gets one safely from a folder or hub, lm.py runs it over a growing text."""
