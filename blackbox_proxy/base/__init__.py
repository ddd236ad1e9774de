"""What serves the base model: each module is a `Base` (protocols.py), or goes around one. Knows no alpha and no pair.

opening -> openai (single: one token at a time)      over the wire, through api/
local (showing)                                      the model's own weights, in this process
wrapper <- cache/, budget                            around any of them
"""
