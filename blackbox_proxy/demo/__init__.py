"""The embedded demo: a small world, four small models that have read about it, and how well their answers fit it.

    world, phrases   the facts, the cut-off, the news after it, and what is asked
    recipe           how large the models are and what they read; the key of the cache
    models           builds the four models once and finds them again
    training         the work of `models`, in processes of its own: the only part that needs torch
    systems          what is compared, and how each is asked
    evaluate         from answers to the rows of the table
    run              all of it in order, printed

The base plays the big black box and has read everything up to the cut-off. The anti-expert is smaller, has another
tokenizer and has read less; the expert is the anti-expert after the news. `direct` is the base after the same news: the
ceiling that only a demo can show.
"""
