"""Models on this machine: loading.py gets one safely from a folder or hub, adapters.py makes one set of weights two
models, frozen.py lays weights out for reading, lm.py is a model, trunk.py reads growing texts with it, packed.py many
at once; outputs.py is what it says then.
"""
