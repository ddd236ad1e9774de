"""The wire: what is sent to a server and what is read from its answers. Knows no alpha and no pair.

    Ask -> sent -> payload -> transport/connection -> streaming -> positions -> entries      Draft

echo: given text in an answer; native: SGLang's own route; recut: where a draft stops being what a later request would
send; meter: what a cut stream has cost; naming: tokens asked about by name; scorer: many texts at once; tokenizer: the
one that the model has, as far as its server tells (telling).
"""
