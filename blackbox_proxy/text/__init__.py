"""Bytes, tokens and text: what a vocabulary spells and how it cuts, where it is loaded from, prompts as text, and the
text that a generation releases.
"""
