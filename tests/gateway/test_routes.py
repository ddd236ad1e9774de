"""The tuned model behind OpenAI's routes, as the unmodified openai client sees it."""

from __future__ import annotations

from gateways import Gateway

from blackbox_proxy import ProxyTuner

PROMPT = "The mayor of New York"


async def test_a_completion_is_the_tuners_text(running: Gateway, tuner: ProxyTuner) -> None:
    wanted = tuner.generate(PROMPT, max_tokens=24)
    async with running.client() as client:
        answer = await client.completions.create(model="tuned", prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == wanted.text
    assert answer.choices[0].finish_reason == wanted.finish_reason
    print(answer)
