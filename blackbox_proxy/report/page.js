// Comfort only: without it every token is still reached by Tab, hover and tap. Arrow keys go from token to token,
// Escape puts the candidates away, a click on a plot leads to its token, and where there is a column beside the text
// the candidates stand at the height of their token.
const wide = matchMedia('(min-width:66rem)');
const beside = (event) => {
  const token = event.target.closest('.k');
  const panel = token && token.querySelector('.i');
  if (!panel || event.target.closest('.i')) return;
  panel.style.top = panel.style.bottom = '';
  if (!wide.matches) return;
  const least = 16;
  const top = Math.min(token.getBoundingClientRect().top, innerHeight - panel.offsetHeight - least);
  panel.style.bottom = 'auto';
  panel.style.top = `${Math.max(least, top)}px`;
};
for (const text of document.querySelectorAll('.text')) {
  const tokens = [...text.querySelectorAll('.k')];
  let here = 0;
  tokens.forEach((token, i) => { token.tabIndex = i ? -1 : 0; });
  const go = (i) => {
    const next = Math.max(0, Math.min(tokens.length - 1, i));
    tokens[here].tabIndex = -1;
    tokens[next].tabIndex = 0;
    here = next;
    tokens[next].focus();
  };
  text.addEventListener('pointerover', beside);
  text.addEventListener('focusin', beside);
  text.addEventListener('click', (event) => {
    const token = event.target.closest('.k');
    if (token && !event.target.closest('.i')) go(tokens.indexOf(token));
  });
  text.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (step) { go(here + step); event.preventDefault(); }
    if (event.key === 'Escape') document.activeElement.blur();
  });
  for (const plot of document.querySelectorAll(`svg[data-text="${text.id}"]`)) {
    plot.addEventListener('click', (event) => {
      const box = plot.getBoundingClientRect();
      go(Math.floor((event.clientX - box.left) / box.width * tokens.length));
      tokens[here].scrollIntoView({ block: 'center' });
    });
  }
}
