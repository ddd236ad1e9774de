"""Models on this machine: loading.py gets one safely from a folder or hub, adapters.py makes one set of weights two
models, lm.py runs a model over a growing text.
"""
