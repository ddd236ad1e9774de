"""Whether settings describe something that works: what `config check` and `doctor` look at, one finding each.

| module | what is there |
|---|---|
| `finding` | `Finding`: what was looked at, ok, warns or fails, and what to do |
| `settings` | what can be told without asking anybody: names, folders, keys, tokenizers |
| `live` | what takes requests or models: one token of the base, its probe, the pair's fit |
"""
