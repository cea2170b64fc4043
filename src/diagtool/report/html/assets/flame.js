// All stacks: an icicle, by Vega's partition.

function flameTable(flame) {
  const byId = flame.nodes;
  const way = (node) =>
    node.parent === null ? '' : [way(byId[node.parent]), node.name].filter(Boolean).join(' › ');
  const rows = byId.slice(1).map((n) => [n.count, n.name, n.place || null, way(byId[n.parent]) || null]);
  return {
    id: 'flame',
    title: 'The same as a table',
    total: rows.length,
    columns: [
      { label: 'stacks', holds: 'count' },
      { label: 'function', holds: 'code' },
      { label: 'place', holds: 'code' },
      { label: 'called by', holds: 'text' },
    ],
    rows,
  };
}

function drawFlame(stage, tools, flame) {
  const row = 21;
  const depth = [];
  let deepest = 0;
  for (const node of flame.nodes) {
    depth[node.id] = node.parent === null ? 0 : depth[node.parent] + 1;
    deepest = Math.max(deepest, depth[node.id]);
  }
  const nodes = flame.nodes.map((n) => ({
    ...n,
    find: (n.name + ' ' + n.place).toLowerCase(),
    text: n.name + (n.place ? ' · ' + n.place : '') + ' · ' + many(n.count, 'stack'),
  }));
  const hit = '(!wanted || indexof(datum.find, wanted) >= 0)';
  const view = draw(
    stage,
    {
      width: stage.clientWidth || 900,
      height: (deepest + 1) * row,
      signals: [
        { name: 'wanted', value: '' },
        { name: 'low', value: 0, on: [{ events: '@bar:click', update: 'datum.x0' }] },
        { name: 'high', value: 1, on: [{ events: '@bar:click', update: 'datum.x1' }] },
      ],
      data: [
        {
          name: 'all',
          values: nodes,
          transform: [
            { type: 'stratify', key: 'id', parentKey: 'parent' },
            { type: 'partition', field: 'self', sort: { field: 'count', order: 'descending' }, size: [1, 1] },
          ],
        },
        {
          name: 'seen',
          source: 'all',
          transform: [
            {
              type: 'filter',
              expr: 'datum.x1 > low + 1e-9 && datum.x0 < high - 1e-9 && (datum.x1 - datum.x0) / (high - low) * width > 0.8',
            },
            { type: 'formula', as: 'left', expr: 'clamp((datum.x0 - low) / (high - low), 0, 1) * width' },
            { type: 'formula', as: 'right', expr: 'clamp((datum.x1 - low) / (high - low), 0, 1) * width' },
          ],
        },
      ],
      scales: [
        {
          name: 'fill',
          type: 'ordinal',
          domain: ['root', 'own', 'library', 'internal'],
          range: ['var(--bar-root)', 'var(--bar-own)', 'var(--bar-library)', 'var(--bar-internal)'],
        },
        {
          name: 'ink',
          type: 'ordinal',
          domain: ['root', 'own', 'library', 'internal'],
          range: ['var(--ink)', 'var(--bar-own-ink)', 'var(--ink)', 'var(--muted)'],
        },
      ],
      marks: [
        {
          type: 'rect',
          name: 'bar',
          from: { data: 'seen' },
          encode: {
            update: {
              x: { field: 'left' },
              x2: { signal: 'max(datum.right - 1, datum.left + 0.5)' },
              y: { signal: `datum.depth * ${row}` },
              height: { value: row - 1 },
              cornerRadius: { value: 2 },
              fill: { scale: 'fill', field: 'whose' },
              fillOpacity: { signal: `${hit} ? 1 : 0.25` },
              tooltip: { field: 'text' },
              cursor: { value: 'pointer' },
            },
            hover: { fillOpacity: { value: 0.8 } },
          },
        },
        {
          type: 'text',
          from: { data: 'seen' },
          interactive: false,
          encode: {
            update: {
              x: { signal: 'datum.left + 6' },
              y: { signal: `datum.depth * ${row} + ${row / 2 + 0.5}` },
              baseline: { value: 'middle' },
              text: {
                signal:
                  "datum.right - datum.left > 28 ? datum.name + (datum.parent === null || datum.right - datum.left > 260 ? '   ' + format(datum.count, ',') : '') : ''",
              },
              limit: { signal: 'max(datum.right - datum.left - 12, 1)' },
              font: { value: MONO },
              fontSize: { value: 11.5 },
              fill: { scale: 'ink', field: 'whose' },
              fillOpacity: { signal: `${hit} ? 1 : 0.4` },
            },
          },
        },
      ],
    },
    true,
  );
  const id = fresh('search');
  const said = el('p', { class: 'said', role: 'status' });
  const input = el('input', {
    type: 'search',
    id,
    autocomplete: 'off',
    spellcheck: 'false',
    oninput: () => {
      const wanted = input.value.trim().toLowerCase();
      const found = nodes.filter((n) => n.find.includes(wanted)).length;
      view.signal('wanted', wanted).run();
      said.textContent = wanted ? many(found, 'frame') + ' found' + (found ? '; Enter looks closer' : '') : '';
    },
    onkeydown: (event) => {
      if (event.key !== 'Enter' || !input.value.trim()) return;
      // The widest one: what a pointer would choose.
      const [widest] = view
        .data('all')
        .filter((n) => n.find.includes(input.value.trim().toLowerCase()))
        .sort((a, b) => b.count - a.count);
      if (!widest) return;
      view.signal('low', widest.x0).signal('high', widest.x1).run();
      said.textContent = widest.text;
    },
  });
  tools.append(
    el('label', { for: id }, 'Find'),
    input,
    el(
      'button',
      { type: 'button', class: 'quiet', onclick: () => view.signal('low', 0).signal('high', 1).run() },
      'Show all',
    ),
    said,
    el(
      'p',
      { class: 'legend' },
      ['own code', 'library', 'interpreter'].map((name, i) =>
        el('span', {}, el('i', { class: ['own', 'library', 'internal'][i], 'aria-hidden': 'true' }), name),
      ),
    ),
  );
  return view.runAsync();
}
