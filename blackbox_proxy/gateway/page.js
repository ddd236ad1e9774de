// Two models of the list answer one prompt, each as a stream of the usual routes. What they write becomes text of the
// page through textContent alone: no string of theirs is ever read as markup.
'use strict';

const at = (id) => document.getElementById(id);
const SHIFTS = [0.02, 0.1, 0.3, 0.6];
const CANDIDATES = 8;
const HINT = 'The candidates of a token are shown here: q (base), E (expert), A (anti-expert) and p (what it was chosen by).';
const MARKS = { exact: '', estimated: '≈', prefix: '†', neutral: '‡' };
const spent = { calls: 0, billed: 0, cost: 0 };
let models = new Map();
let running = null;
let shown = null; // the token whose candidates are shown

// -- writing -----------------------------------------------------------------------------------------------------------

const element = (name, text = '', classes = '') => {
  const made = document.createElement(name);
  made.textContent = text;
  if (classes) made.className = classes;
  return made;
};

const say = (text, wrong = false) => {
  at('status').textContent = text;
  at('status').className = wrong ? 'say' : 'soft';
};

const probability = (value) => {
  if (value === null || value === undefined) return '–';
  if (value < 1e-12) return '0';
  return value < 0.0005 ? value.toExponential(0) : value >= 0.9995 ? '1' : value.toFixed(3);
};

const difference = (value) => (value === null ? '–' : (value < 0 ? '−' : '+') + Math.abs(value).toFixed(3));

const several = (number, what) => `${number} ${what}${number === 1 ? '' : 's'}`;

const money = (value) => (value === 0 ? '0' : String(Number(value.toPrecision(3))));

// -- the models --------------------------------------------------------------------------------------------------------

const headers = () => {
  const key = at('key').value.trim();
  return { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) };
};

const failure = async (response) => {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `The server answered ${response.status}.`);
};

const load = async () => {
  const response = await fetch('/v1/models', { headers: headers() });
  at('locked').hidden = response.status !== 401 && !at('key').value;
  if (response.status === 401) {
    say(at('key').value ? 'This key is not known here.' : 'This server wants a key.', Boolean(at('key').value));
    at('key').focus();
    return;
  }
  if (!response.ok) throw await failure(response);
  models = new Map((await response.json()).data.map((model) => [model.id, model]));
  const names = [...models.keys()];
  const base = names.find((name) => models.get(name).alpha === null) ?? names[0];
  for (const [side, first] of [['left', base], ['right', names.find((name) => name !== base) ?? base]]) {
    at(side).replaceChildren(...names.map((name) => new Option(name, name, name === first, name === first)));
  }
  at('costs').hidden = ![...models.values()].some((model) => model.prices);
  at('run').disabled = false;
  weigh();
  say('');
};

// The slider belongs to the model on the right, within what the operator allows; untouched, the model's own alpha is used.
const weigh = () => {
  const model = models.get(at('right').value);
  const slider = at('alpha');
  at('weight').hidden = !model?.alpha_range;
  if (!model?.alpha_range) return;
  [slider.min, slider.max] = model.alpha_range;
  slider.value = typeof model.alpha === 'number' ? model.alpha : model.alpha_range[1];
  delete slider.dataset.touched;
  at('alphasaid').textContent = typeof model.alpha === 'number' ? String(model.alpha) : 'its own';
};

// -- one text ----------------------------------------------------------------------------------------------------------

const order = (side) => {
  const model = models.get(at(side).value);
  const most = Math.min(CANDIDATES, model.steps);
  const message = at('as').value === 'message';
  const body = {
    model: model.id,
    max_tokens: Number(at('most').value),
    temperature: Number(at('temperature').value),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    return_token_ids: true, // so that the end has its entry
  };
  if (message) body.messages = [{ role: 'user', content: at('prompt').value }];
  else body.prompt = at('prompt').value;
  if (most) Object.assign(body, { steps: most }, message ? { logprobs: true, top_logprobs: 0 } : { logprobs: 0 });
  if (side === 'right' && !at('weight').hidden && at('alpha').dataset.touched) body.alpha = Number(at('alpha').value);
  return [message ? '/v1/chat/completions' : '/v1/completions', body, model];
};

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const pieces = (waiting + value).split('\n\n');
    waiting = pieces.pop();
    for (const piece of pieces) {
      const data = piece.replace(/^data: /, '');
      if (data === '[DONE]') return;
      yield JSON.parse(data);
    }
  }
}

const classes = (step) => {
  const names = ['k'];
  const level = SHIFTS.filter((least) => Math.abs(step.shift ?? 0) >= least).length;
  if (level) names.push((step.shift > 0 ? 's' : 'l') + level);
  if (step.beyond) names.push('y');
  else if (step.changed) names.push('w');
  return names.join(' ');
};

const write = (text, step) => {
  const token = element('span', '', classes(step));
  const lines = step.text.split('⏎\n');
  lines.forEach((line, i) => {
    if (i) token.append(element('i', '⏎', 'g'), '\n');
    token.append(line);
  });
  if (step.waits) token.append(element('i', '‥', 'h'));
  if (step.end) token.replaceChildren(element('i', '⏹\u00a0end', 'g e'));
  token.setAttribute('role', 'button');
  token.tabIndex = text.querySelector('.k') ? -1 : 0;
  token.step = step;
  text.append(token);
};

const tell = (side, count, usage, model, seconds) => {
  const far = usage.upstream ?? { api_calls: 0, prompt_tokens: 0, completion_tokens: 0, cached_positions: 0 };
  const cached = far.cached_positions ? `, ${several(far.cached_positions, 'place')} from the cache` : '';
  at(`${side}figures`).textContent =
    `${several(count, 'token')} in ${seconds.toFixed(1)} s · ${several(far.api_calls, 'call')}${cached} · ` +
    `billed ${far.prompt_tokens} prompt + ${far.completion_tokens} output`;
  const cost = model.prices
    ? (far.prompt_tokens - (far.cached_prompt_tokens ?? 0)) * model.prices[0] +
      (far.cached_prompt_tokens ?? 0) * model.prices[1] + far.completion_tokens * model.prices[2]
    : 0;
  return { calls: far.api_calls, billed: far.prompt_tokens + far.completion_tokens, cost };
};

const count = (before, now) => {
  for (const name of Object.keys(spent)) spent[name] += now[name] - before[name];
  at('calls').textContent = spent.calls;
  at('billed').textContent = spent.billed;
  at('cost').textContent = money(spent.cost);
};

const stream = async (side, signal) => {
  const [route, body, model] = order(side);
  const text = at(`${side}text`);
  const begun = performance.now();
  let before = { calls: 0, billed: 0, cost: 0 };
  const response = await fetch(route, { method: 'POST', headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw await failure(response);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (choice?.logprobs?.steps) choice.logprobs.steps.forEach((step) => write(text, step));
    else if (choice && !model.steps) text.append(choice.text ?? choice.delta?.content ?? '');
    if (!event.usage) continue;
    const now = tell(side, event.usage.completion_tokens, event.usage, model, (performance.now() - begun) / 1000);
    count(before, now);
    before = now;
  }
};

const run = async () => {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  close();
  for (const side of ['left', 'right']) {
    at(`${side}text`).replaceChildren();
    at(`${side}figures`).textContent = '';
  }
  at('stop').disabled = false;
  say('Writing …');
  const ends = await Promise.allSettled(['left', 'right'].map((side) => stream(side, mine.signal)));
  if (running !== mine) return;
  running = null;
  at('stop').disabled = true;
  const wrong = ends.map((end) => end.reason).filter((reason) => reason && reason.name !== 'AbortError');
  if (wrong.length) say([...new Set(wrong.map((reason) => reason.message))].join(' '), true);
  else say(mine.signal.aborted ? 'Stopped.' : 'Done.');
};

// -- the candidates of a token -----------------------------------------------------------------------------------------

const row = (cells, name, chosen) => {
  const made = element('tr', '', chosen ? 'x' : '');
  made.append(...cells.map((cell) => element(name, cell)));
  return made;
};

const close = () => {
  at('why').classList.remove('on');
  at('why').textContent = HINT;
  shown?.removeAttribute('aria-current');
  shown = null;
};

const open = (token) => {
  if (token === shown) return;
  shown?.removeAttribute('aria-current');
  shown = token;
  token.setAttribute('aria-current', 'true');
  const step = token.step;
  const panel = at('why');
  const hide = element('button', '×', 'close');
  hide.type = 'button';
  hide.setAttribute('aria-label', 'Put the candidates away');
  hide.addEventListener('click', close);
  const own = step.candidates.find((candidate) => candidate.chosen);
  const head = [hide, element('b', own?.token ?? (step.text || '(nothing)'))];
  if (!step.candidates.length) {
    panel.replaceChildren(...head, element('u', 'The base ended the text here without showing candidates.'));
  } else {
    const moved = element(
      'u',
      `q ${probability(step.q)} → p ${probability(step.p)} · shift ${difference(step.shift)} · base showed ` +
        `${probability(step.covered)} · ${step.drafted ? 'kept from a draft' : 'put in place of the draft'}`,
    );
    const table = element('table');
    table.append(row(['', 'q', 'E', 'A', 'p'], 'th', false));
    for (const c of step.candidates) {
      const q = (c.estimated ? '~' : '') + probability(c.q);
      const cells = [c.token, q, probability(c.expert) + (MARKS[c.how] ?? ''), probability(c.antiexpert)];
      const made = row([...cells, probability(c.p)], 'td', c.chosen);
      made.style.setProperty('--q', 100 * (c.q ?? 0));
      made.style.setProperty('--p', 100 * (c.p ?? 0));
      table.append(made);
    }
    const { count: others, q, p } = step.others;
    const rest = others ? [element('em', `${others} others: q ${probability(q)}, p ${probability(p)}`)] : [];
    panel.replaceChildren(...head, moved, table, ...rest);
  }
  panel.classList.add('on');
};

const go = (token) => {
  if (!token) return;
  for (const other of token.parentElement.querySelectorAll('.k[tabindex="0"]')) other.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
};

for (const side of ['left', 'right']) {
  const text = at(`${side}text`);
  const looked = (event) => {
    const token = event.target.closest('.k');
    if (token) open(token);
  };
  text.addEventListener('pointerover', looked);
  text.addEventListener('focusin', looked);
  text.addEventListener('click', (event) => go(event.target.closest('.k')));
  text.addEventListener('keydown', (event) => {
    const tokens = [...text.querySelectorAll('.k')];
    const here = tokens.indexOf(event.target.closest('.k'));
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (!step || here < 0) return;
    event.preventDefault();
    go(tokens[Math.max(0, Math.min(tokens.length - 1, here + step))]);
  });
}

// -- what people do ----------------------------------------------------------------------------------------------------

at('ask').addEventListener('submit', (event) => { event.preventDefault(); if (models.size) run(); });
at('stop').addEventListener('click', () => running?.abort());
at('right').addEventListener('change', weigh);
at('alpha').addEventListener('input', () => {
  at('alpha').dataset.touched = 'yes';
  at('alphasaid').textContent = at('alpha').value;
});
const begin = () => load().catch((error) => say(error.message, true));
at('unlock').addEventListener('click', begin);
at('key').addEventListener('keydown', (event) => { if (event.key === 'Enter') { event.preventDefault(); begin(); } });
at('prompt').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) at('ask').requestSubmit();
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') close(); });
close();
begin();
