"""The way of a token: ask the base, let the pair score, weigh, choose, issue back. Knows the two protocols only.

loop       ask, score, take, emit; arrivals: a draft as it streams in; threads: where models run
pace       all policy of requests: what is asked for next, of one text (`Course`) and by what was seen (`Pace`)
prompted   a pair and the prompt that it is shown
rows       the pairs' sessions, and rows that are complete; contenders: whose score is worth a pass of the models
weigh      from a position's candidates to log p; whole_vocabulary: over everything, for given text
verify     walks over a scored draft to the first token that p replaces; local: what the expert would draft
text       the text so far, and where it ends
biased     where the server chooses under a bias, for APIs without log probabilities
"""
