"""The way of a token: ask the base, let the pair score, weigh, choose, issue back. Knows the two protocols only.

loop      asks for drafts and brings them to the text (arrivals: as they stream in; pace: how much to ask for)
verify    walks over a scored draft to the first token that p replaces
weigh     from a position's candidates to log p; whole_vocabulary: over everything, for given text
biased    where the server chooses under a bias, for APIs without log probabilities
"""
