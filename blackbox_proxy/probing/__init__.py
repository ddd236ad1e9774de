"""Finding out what an endpoint really does. The findings are kept by dialects/findings.py.

run.py         the whole: which API, how many candidates, then the questions
questions.py   their order, and what was found
drafting.py, bending.py, continuing.py   the questions
inquiry.py     what they share: whom they ask, the draft, what is found so far
client.py      how it is asked: bounded and counted
answers.py     what is read in an answer       pure
verdict.py     what follows for this library   pure
"""
