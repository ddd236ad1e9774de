"""The screen: the one place through which all text goes to a terminal, and what pages have in common.

visible.py    text of others as text that does nothing          pure
console.py    what commands print with: rich's console, lines, JSON, logs
tables.py     tables that never cut a figure
styles.py     the style sheet of pages that show tokens (tokens.css)
"""
