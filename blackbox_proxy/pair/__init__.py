"""The near side: expert and anti-expert on this machine (transformers.py) or behind a server (remote.py).

models.ModelPair -> plain      base and pair spell alike: E(c) is the probability of that id
                 -> aligned    they do not: events over a token tree (alignment: which nodes; masses: their sums)
learned: what is known of the base at each place of a text
sharing: the vocabulary of both, where tuning has added to the tokenizer
side: one of the two models in one session; tree: the paths of many positions in one forward pass
"""
