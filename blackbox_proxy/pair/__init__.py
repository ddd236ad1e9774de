"""The near side: expert and anti-expert on this machine (transformers.py) or behind a server (remote.py).

models.ModelPair -> plain      base and pair spell alike: E(c) is the probability of that id
                 -> estimated  they do not: the row after the text, and sums of what contends (estimates, contended)
                 -> aligned    the same with every event summed over a token tree (masses)
sharing: the vocabulary of both, where tuning has added to the tokenizer
side: one of the two models in one session
"""
