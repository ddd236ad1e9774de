"""A conversation with the tuned model in the terminal: `blackbox-proxy chat`.

conversation.py   what was said, and the next reply: no terminal
terminal.py       lines in, text out: the commands that begin with a slash
"""
