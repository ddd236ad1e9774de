"""Weights learned from a few texts: what is asked, what is fitted, and whether it is better beyond chance.

places      what base and pair say at one place of a text, and what stood there
asking      texts, answers and questions -> places: through the cache, each asked about once
likelihood  places -> one table of terms; the loss, its gradient and its curvature
options     questions whose options are compared -> a table of tables; the same of it
fitting     Newton's method, the strength of the pull, the tail's spread, cross-validation over documents
learning    documents -> weights, and the comparison with plain proxy-tuning on documents that were left out
run         calibrate: all of it
"""
