"""Bytes, tokens and text.

vocabulary   what ids spell (table) and how text is cut: boundaries (added: words that go before them), first tokens
spelling     where a vocabulary comes from: tokenizer.json (pieces, rendering of prompts), tiktoken; files beside it
here         tokenizers whose files lie on this machine; identity: what tells two spellings apart
words        where text is cut whatever the tokenizer: before words
kept, memo   what is remembered of that: in files, in this process
reading      text from files and standard input: the one way in
prompts      what can be said of a prompt before it is cut; shown: one prompt for base and pair
writer       the text that a generation releases
"""
