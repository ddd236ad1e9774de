"""Finding out what an endpoint really does: questions.py asks through client.py, answers.py reads, verdict.py says what
follows, run.py is the whole. The findings are kept by dialects/findings.py.
"""
