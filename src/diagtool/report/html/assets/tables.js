// Tables that can be searched and sorted. Rows are shown some at a time, searched all.

const ROWS = 50;

function stackText(ids, frames) {
  return ids.map((id) => frames[id][0] + ' ' + frames[id][2]).join('\n');
}

function innermostOwn(ids, frames) {
  const own = ids.find((id) => frames[id][3] === 'own');
  return frames[own === undefined ? ids[0] : own];
}

function frameList(ids, frames) {
  return el(
    'ol',
    { class: 'frames' },
    ids.map((id) => {
      const [name, place, path, whose, source] = frames[id];
      return el(
        'li',
        { class: whose },
        el('span', { class: 'place', title: path }, place),
        el('span', { class: 'function' }, name),
        source ? el('code', { class: 'source' }, source) : null,
      );
    }),
  );
}

// What a cell is searched and sorted by.
function plain(value, column, frames) {
  if (value === null) return '';
  if (column.holds === 'stack') return stackText(value, frames);
  return typeof value === 'number' ? value : String(value);
}

function compare(a, b) {
  if (a === '' || b === '') return (a === '') - (b === ''); // what is not known comes last
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return String(a).localeCompare(String(b), 'en', { numeric: true });
}

function dataTable(spec, frames) {
  const isNumber = (c) => ['id', 'count', 'bytes', 'seconds'].includes(c.holds);
  const state = { found: spec.rows, shown: ROWS, sorted: -1, down: false };
  const keys = spec.rows.map((row) => row.map((v, i) => plain(v, spec.columns[i], frames)));
  const index = new Map(spec.rows.map((row, i) => [row, i]));
  const texts = keys.map((row) => row.join('\n').toLowerCase());

  const body = el('tbody');
  const said = el('p', { class: 'said', role: 'status' });
  const more = el(
    'button',
    {
      type: 'button',
      class: 'quiet',
      onclick: () => {
        state.shown += 200;
        show();
      },
    },
    'Show more rows',
  );
  const inputId = fresh('search');
  const input = el('input', {
    type: 'search',
    id: inputId,
    autocomplete: 'off',
    spellcheck: 'false',
    oninput: find,
  });
  const heads = spec.columns.map((column, i) =>
    el(
      'th',
      { scope: 'col', class: isNumber(column) ? 'number' : null },
      el(
        'button',
        { type: 'button', onclick: () => sort(i) },
        column.label,
        el('span', { class: 'arrow', 'aria-hidden': 'true' }),
      ),
    ),
  );

  function cell(value, column, head) {
    const brief = typeof value === 'string' && value.length <= 36;
    const attributes = { class: isNumber(column) ? 'number' : 'is-' + column.holds + (brief ? ' brief' : '') };
    if (head) attributes.scope = 'row';
    const make = (...children) => el(head ? 'th' : 'td', attributes, children);
    if (value === null) return make();
    if (column.holds === 'verdict') return make(el('span', { class: 'verdict ' + value }, value));
    if (column.holds !== 'stack') return make(amount(value, column.holds));
    if (!value.length) return make();
    const frame = innermostOwn(value, frames);
    const details = el('details', { class: 'stack' }, el('summary', {}, frame[0] + ' · ' + frame[1]));
    details.addEventListener('toggle', () => {
      if (details.open && details.children.length === 1) details.append(frameList(value, frames));
    });
    return make(details);
  }

  function show() {
    body.replaceChildren(
      ...state.found.slice(0, state.shown).map((row) =>
        el(
          'tr',
          {},
          row.map((value, i) => cell(value, spec.columns[i], i === 0)),
        ),
      ),
    );
    more.hidden = state.found.length <= state.shown;
    const rows = many(state.found.length, 'row');
    const of = state.found.length === spec.rows.length ? '' : ' of ' + whole.format(spec.rows.length);
    const missing = spec.total - spec.rows.length;
    said.textContent = rows + of + (missing > 0 ? '; ' + whole.format(missing) + ' more are not in this file' : '');
  }

  function find() {
    const wanted = input.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    state.found = spec.rows.filter((row) => wanted.every((word) => texts[index.get(row)].includes(word)));
    state.shown = ROWS;
    order();
  }

  function sort(column) {
    // Numbers are looked at largest first.
    state.down =
      state.sorted === column ? !state.down : isNumber(spec.columns[column]) && spec.columns[column].holds !== 'id';
    state.sorted = column;
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute('aria-sort', state.down ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
    order();
  }

  function order() {
    const i = state.sorted;
    if (i >= 0) {
      state.found = [...state.found].sort((a, b) => {
        const [x, y] = [keys[index.get(a)][i], keys[index.get(b)][i]];
        return x === '' || y === '' ? compare(x, y) : state.down ? compare(y, x) : compare(x, y);
      });
    }
    show();
  }

  show();
  const table = el(
    'table',
    {},
    el('caption', { class: 'away' }, spec.title),
    el('thead', {}, el('tr', {}, heads)),
    body,
  );
  return el(
    'div',
    { class: 'table' },
    el('div', { class: 'tools' }, el('label', { for: inputId }, 'Search'), input, said),
    el('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': spec.title }, table),
    more,
  );
}

function foldedTable(spec, frames, open) {
  const details = el(
    'details',
    { class: 'fold', id: 'table-' + spec.id },
    el(
      'summary',
      {},
      el('span', { class: 'name' }, spec.title),
      ' ',
      el('span', { class: 'number' }, whole.format(spec.total)),
    ),
  );
  const fill = () => {
    if (details.open && details.children.length === 1) details.append(dataTable(spec, frames));
  };
  details.addEventListener('toggle', fill);
  if (open) {
    details.open = true;
    fill();
  }
  return details;
}
