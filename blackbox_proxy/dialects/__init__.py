"""What servers do, as data: table.py by dialect, findings.py by what a probe saw, tokenizers.py by what was found of
their tokenizers, guessing.py by URL; support.py says what of this library works with each. Sends nothing.
"""
