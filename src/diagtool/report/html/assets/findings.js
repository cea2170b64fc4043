// The findings: what, why, who holds it, what to change.

const FINDINGS = 25;

// Markdown that was taken apart: texts, and [element, link, ...children]. Elements are those of the list.
const ELEMENTS = [
  'p',
  'ul',
  'ol',
  'li',
  'strong',
  'em',
  'code',
  'pre',
  'a',
  'blockquote',
  'h5',
  'table',
  'thead',
  'tbody',
  'tr',
  'th',
  'td',
];

function tree(nodes) {
  return nodes.map((node) => {
    if (typeof node === 'string') return node;
    const [name, link, ...children] = node;
    if (name === 'a' && !/^https?:/.test(link)) return tree(children);
    const attributes = name === 'a' ? { href: link, rel: 'noopener noreferrer' } : {};
    return el(ELEMENTS.includes(name) ? name : 'p', attributes, tree(children));
  });
}

function stackOf(finding, frames) {
  const ids = finding.frames;
  if (!ids.length) return null;
  const own = ids.filter((id) => frames[id][3] === 'own');
  const first = own.length ? own : ids.slice(0, 3);
  const box = el('div', { class: 'stack' }, frameList(first, frames));
  const folded = ids.length - first.length;
  if (!folded) return box;
  let open = false;
  const label = () => (open ? 'Own code only' : 'Show ' + many(folded, 'library frame'));
  const button = el('button', { type: 'button', class: 'quiet', 'aria-expanded': 'false' }, label());
  button.addEventListener('click', () => {
    open = !open;
    box.firstChild.replaceWith(frameList(open ? ids : first, frames));
    button.setAttribute('aria-expanded', String(open));
    button.textContent = label();
  });
  box.append(button);
  return box;
}

function factList(facts) {
  if (!facts.length) return null;
  return el(
    'dl',
    { class: 'words' },
    facts.map(([label, texts]) =>
      el(
        'div',
        {},
        el('dt', {}, label),
        texts.map((text) => el('dd', {}, text)),
      ),
    ),
  );
}

// Lines of the program's source that explain the finding, each with what it says.
function sourceLines(lines) {
  if (!lines.length) return null;
  return [
    el('h4', {}, 'In the source'),
    el(
      'ol',
      { class: 'frames lines-of-source' },
      lines.map(([place, text, says]) =>
        el(
          'li',
          { class: 'own' },
          el('span', { class: 'place' }, place),
          el('code', { class: 'source' }, text),
          el('span', { class: 'says' }, says),
        ),
      ),
    ),
  ];
}

function findingCard(finding, data) {
  const id = 'finding-' + finding.id;
  const runbook = finding.template ? data.runbooks[finding.template] : null;
  return el(
    'article',
    { class: 'finding ' + finding.verdict, id, 'aria-labelledby': id + '-title' },
    el(
      'header',
      {},
      el(
        'p',
        { class: 'line' },
        el('span', { class: 'verdict ' + finding.verdict }, finding.verdict),
        el('span', { class: 'many' }, finding.count),
        finding.does ? el('span', { class: 'does' }, finding.does) : null,
      ),
      el('h3', { id: id + '-title' }, finding.title),
      finding.template ? el('p', { class: 'template' }, el('code', {}, finding.template)) : null,
    ),
    stackOf(finding, data.frames),
    factList(finding.facts),
    sourceLines(finding.source),
    finding.cause ? [el('h4', {}, 'Cause'), el('p', {}, withCode(finding.cause))] : null,
    finding.fix ? el('div', { class: 'fix' }, el('h4', {}, 'Fix'), el('p', {}, withCode(finding.fix))) : null,
    runbook && runbook.length
      ? el(
          'details',
          { class: 'runbook' },
          el('summary', {}, 'Runbook'),
          el('div', { class: 'text' }, tree(runbook)),
        )
      : null,
  );
}

// Many findings are listed first, each a link to what is known about it.
function overview(findings) {
  if (findings.length < 3) return null;
  return el(
    'ol',
    { class: 'overview', 'aria-label': 'All findings' },
    findings
      .slice(0, FINDINGS)
      .map((finding) =>
        el(
          'li',
          {},
          el('span', { class: 'verdict ' + finding.verdict }, finding.verdict),
          ' ',
          el('a', { href: '#finding-' + finding.id }, finding.title),
          ' ',
          el('span', { class: 'many' }, finding.count),
        ),
      ),
  );
}

function findingsSection(data) {
  const box = el('div', { class: 'findings' });
  let shown = 0;
  const more = el('button', { type: 'button', class: 'quiet', onclick: () => show() });
  function show() {
    const next = data.findings.slice(shown, shown + FINDINGS);
    const cards = next.map((finding) => findingCard(finding, data));
    box.append(...cards);
    if (shown) {
      cards[0].tabIndex = -1;
      cards[0].focus();
    }
    shown += next.length;
    more.hidden = shown >= data.findings.length;
    more.textContent = many(data.findings.length - shown, 'more finding');
  }
  if (data.findings.length) show();
  else {
    more.hidden = true;
    box.append(
      el(
        'p',
        { class: 'notice' },
        'Nothing matched a leak template. What waits as it should ',
        '(worker pools, event loops, listeners) is in the table of clusters.',
      ),
    );
  }
  const left = data.findings_left_out;
  return section(
    'findings',
    'Findings',
    null,
    overview(data.findings),
    box,
    more,
    data.ignored ? foldedTable(data.ignored, data.frames) : null,
    left
      ? el('p', { class: 'notice' }, many(left, 'more finding') + ' are not in this file; the JSON report has all.')
      : null,
  );
}
