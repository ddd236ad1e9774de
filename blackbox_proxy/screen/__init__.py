"""The terminal: the one place through which all text goes to it.

visible.py    text of others as text that does nothing          pure
console.py    what commands print with: rich's console, lines, JSON, logs
tables.py     tables that never cut a figure
"""
