"""What the tuned model says of given text: choices.py which option, scoring.py how likely; forms.py how answers are
written.
"""
