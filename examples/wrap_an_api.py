"""Wrap an API in about ten lines: the big model's text, steered by a small pair, printed as it is decided.

    python examples/wrap_an_api.py MODEL BASE_URL EXPERT ANTIEXPERT "Once upon a time"

MODEL is the big model's name at an OpenAI-compatible server (`blackbox-proxy host`, vLLM …); EXPERT and ANTIEXPERT
are folders or hub ids.
"""

import sys

from blackbox_proxy import ProxyTuner, TransformersPair, open_base

model, base_url, expert, antiexpert, prompt = sys.argv[1:]
base = open_base(model, base_url=base_url, dialect="vllm")
pair = TransformersPair(expert=expert, antiexpert=antiexpert)
with ProxyTuner(base, pair, alpha=1.0) as tuner:
    for step in tuner.stream(prompt, max_tokens=100):
        print(step.text, end="", flush=True)
print()
