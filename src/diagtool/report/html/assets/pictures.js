// Pictures: specifications for Vega, positions of boxes by dagre. Colours are those of the style sheet.
// Each picture has a table with the same in it; for a screen reader the picture itself is not there.

const FONT = 'system-ui, sans-serif';
const MONO = 'ui-monospace, monospace';
const pending = [];

function picture(name, about, make, table, alone) {
  const stage = el('div', { class: 'stage', 'aria-hidden': 'true' });
  const tools = el('div', { class: 'tools' });
  pending.push(() => make(stage, tools));
  return el('figure', { class: 'picture' },
    el('figcaption', {}, alone ? null : el('h3', {}, name), about ? el('p', {}, about) : null), tools,
    el('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': name + ' (picture)' }, stage), table);
}

// One after the other, with room for the page to react in between.
async function drawAll() {
  for (const make of pending.splice(0)) {
    await new Promise((resolve) => { setTimeout(resolve); });
    await make();
  }
  document.documentElement.dataset.ready = 'yes';
}

// What the pointer is on, in words.
function showHint(handler, event, item, value) {
  const hint = document.getElementById('hint');
  hint.hidden = !value;
  if (!value) return;
  hint.textContent = value;
  const room = document.documentElement.clientWidth - hint.offsetWidth - 12;
  hint.style.left = Math.max(Math.min(event.clientX + 14, room), 4) + 'px';
  hint.style.top = (event.clientY + 18) + 'px';
}

function draw(stage, spec, fits) {
  const config = { background: null, padding: 0, autosize: fits ? 'none' : 'pad' };
  const runtime = charts.parse({ ...config, ...spec }, null, { ast: true });
  const view = new charts.View(runtime, { expr: charts.expressionInterpreter, renderer: 'svg', container: stage, hover: true, logLevel: 1 });
  view.tooltip(showHint);
  if (fits) {
    let width = stage.clientWidth;
    new ResizeObserver(() => {
      if (!stage.clientWidth || stage.clientWidth === width) return;
      width = stage.clientWidth;
      view.width(width).run();
    }).observe(stage);
  }
  return view;
}

function pictureSections(data) {
  const out = [];
  if (data.waits) {
    out.push(section('waits', 'Who waits for whom', null, picture('Waits and locks',
      'Stacks that are alike are one box; an arrow leads to what they wait on, and from there to who has it.' +
      (data.waits.left_out ? ' ' + many(data.waits.left_out, 'smaller cluster') + ' left out.' : ''),
      (stage) => drawWaits(stage, data.waits), foldedTable(waitTable(data.waits), data.frames), true)));
  }
  if (data.flame) {
    const missing = data.flame.left_out ? ' ' + whole.format(data.flame.left_out) + ' of the smallest bars are left out.' : '';
    out.push(section('flame', 'All stacks', null, picture('Stacks by number',
      'The outermost frame is at the top; a bar is as wide as the number of stacks that go through it. ' +
      'Choose a bar to look closer, the top one to go back.' + missing,
      (stage, tools) => drawFlame(stage, tools, data.flame), foldedTable(flameTable(data.flame), data.frames), true)));
  }
  const areas = [
    data.heap && areaPicture('Objects by module and type', 'An area is as large as the bytes of all objects of a type.', data.heap, data.frames),
    data.containers && areaPicture('Largest containers, with what they keep', 'By where they are held. What lies in a container that lies in another counts in both.', data.containers, data.frames),
    data.kept && areaPicture('What types keep', 'What would be free without the objects of a type. What two types keep together counts for neither.', data.kept, data.frames),
    data.memory && areaPicture('Resident memory by owner', 'Whose the memory in use is; of allocators what is in use and what is free.', data.memory, data.frames),
  ].filter(Boolean);
  if (areas.length) out.push(section('memory', 'Memory', null, areas));
  if (data.growth) {
    out.push(section('growth', 'Growth', many(data.growth.snapshots, 'snapshot') + ' of one process, oldest first.',
      el('div', { class: 'lines' }, data.growth.pictures.map((one) => linePicture(one, data.growth.timed, data.frames)))));
  }
  return out;
}

// --- who waits for whom ---

function waitTable(waits) {
  const texts = waits.boxes.map((box) => box.text);
  return {
    id: 'waits', title: 'The same as a table',
    columns: [{ label: 'who', holds: 'text' }, { label: 'does', holds: 'text' }, { label: 'whom or what', holds: 'text' }, { label: 'count', holds: 'count' }],
    rows: waits.arrows.map((a) => [texts[a.from], a.text, texts[a.to], a.count]), total: waits.arrows.length,
  };
}

// How wide texts are: boxes are made for them.
function measure(texts, font) {
  const context = document.createElement('canvas').getContext('2d');
  context.font = font;
  return Math.max(0, ...texts.map((text) => context.measureText(text).width));
}

function drawWaits(stage, waits) {
  const graph = new charts.graphlib.Graph({ multigraph: true });
  graph.setGraph({ rankdir: 'LR', nodesep: 18, ranksep: 48, edgesep: 12, marginx: 8, marginy: 8 });
  for (const box of waits.boxes) {
    const longest = Math.max(measure([box.title], `600 13px ${FONT}`), measure(box.lines, `11.5px ${FONT}`));
    graph.setNode(String(box.id), { width: Math.max(longest + 30, 90), height: 32 + 16 * box.lines.length });
  }
  waits.arrows.forEach((arrow, i) => graph.setEdge(String(arrow.from), String(arrow.to),
    { width: measure([arrow.text], `11px ${FONT}`) + 4, height: 12, labelpos: 'c' }, String(i)));
  charts.layout(graph);
  const boxes = waits.boxes.map((box) => {
    const at = graph.node(String(box.id));
    return { ...box, x: at.x - at.width / 2, y: at.y - at.height / 2, width: at.width, height: at.height };
  });
  const lines = boxes.flatMap((box) => box.lines.map((text, i) => ({ text, x: box.x + 14, y: box.y + 38 + 16 * i, verdict: box.verdict })));
  const edges = graph.edges().map((e) => ({ arrow: waits.arrows[Number(e.name)], ...graph.edge(e), edge: e.name }));
  const points = edges.flatMap((e) => e.points.map((p) => ({ x: p.x, y: p.y, edge: e.edge })));
  const heads = edges.map((e) => {
    const [before, last] = e.points.slice(-2);
    const angle = Math.atan2(last.y - before.y, last.x - before.x);
    return { x: last.x - 5 * Math.cos(angle), y: last.y - 5 * Math.sin(angle), angle: angle * 180 / Math.PI + 90 };
  });
  const labels = edges.map((e) => ({ x: e.x, y: e.y, text: e.arrow.text }));
  const size = graph.graph();
  const view = draw(stage, {
    width: size.width, height: size.height, autosize: 'none',
    data: [{ name: 'points', values: points }, { name: 'heads', values: heads }, { name: 'labels', values: labels },
      { name: 'boxes', values: boxes }, { name: 'lines', values: lines }],
    scales: [{ name: 'edge', type: 'ordinal', domain: ['proven', 'likely', 'suspect', 'idle', ''],
      range: ['var(--proven)', 'var(--likely)', 'var(--suspect)', 'var(--line)', 'var(--line-strong)'] }],
    marks: [
      { type: 'group', from: { facet: { name: 'one', data: 'points', groupby: 'edge' } }, interactive: false,
        marks: [{ type: 'line', from: { data: 'one' }, encode: { enter: { x: { field: 'x' }, y: { field: 'y' },
          interpolate: { value: 'monotone' }, stroke: { value: 'var(--muted)' }, strokeWidth: { value: 1.4 } } } }] },
      { type: 'symbol', from: { data: 'heads' }, interactive: false, encode: { enter: { x: { field: 'x' }, y: { field: 'y' },
        angle: { field: 'angle' }, shape: { value: 'triangle' }, size: { value: 60 }, fill: { value: 'var(--muted)' } } } },
      { type: 'text', from: { data: 'labels' }, interactive: false, encode: { enter: { x: { field: 'x' }, y: { field: 'y' },
        text: { field: 'text' }, align: { value: 'center' }, baseline: { value: 'bottom' }, dy: { value: -2 }, font: { value: FONT }, fontSize: { value: 11 },
        fill: { value: 'var(--muted)' } } } },
      { type: 'rect', from: { data: 'boxes' }, encode: { enter: { x: { field: 'x' }, y: { field: 'y' },
        width: { field: 'width' }, height: { field: 'height' }, tooltip: { field: 'text' },
        cornerRadius: { signal: "datum.kind === 'thing' ? 14 : 5" },
        fill: { signal: "datum.kind === 'thing' ? 'var(--paper)' : 'var(--surface)'" },
        stroke: { scale: 'edge', field: 'verdict' }, strokeWidth: { signal: "datum.verdict && datum.verdict !== 'idle' ? 2.2 : 1.2" },
        strokeDash: { signal: "datum.kind === 'thing' ? [4, 3] : []" } } } },
      { type: 'text', from: { data: 'boxes' }, interactive: false, encode: { enter: { x: { signal: 'datum.x + 14' },
        y: { signal: 'datum.y + 21' }, text: { field: 'title' }, font: { value: FONT }, fontSize: { value: 13 }, fontWeight: { value: 600 },
        fill: { signal: "datum.verdict === 'idle' ? 'var(--muted)' : 'var(--ink)'" } } } },
      { type: 'text', from: { data: 'lines' }, interactive: false, encode: { enter: { x: { field: 'x' }, y: { field: 'y' },
        text: { field: 'text' }, font: { value: FONT }, fontSize: { value: 11.5 }, fill: { value: 'var(--muted)' } } } },
    ],
  }, false);
  // A little smaller rather than scrolled.
  return view.runAsync().then(() => {
    const scale = Math.min(1, Math.max(0.72, stage.clientWidth / size.width));
    const svg = stage.querySelector('svg');
    svg.setAttribute('width', size.width * scale);
    svg.setAttribute('height', size.height * scale);
  });
}

// --- all stacks ---

function flameTable(flame) {
  const byId = flame.nodes;
  const way = (node) => (node.parent === null ? '' : [way(byId[node.parent]), node.name].filter(Boolean).join(' › '));
  const rows = byId.slice(1).map((n) => [n.count, n.name, n.place || null, way(byId[n.parent]) || null]);
  return {
    id: 'flame', title: 'The same as a table', total: rows.length,
    columns: [{ label: 'stacks', holds: 'count' }, { label: 'function', holds: 'code' }, { label: 'place', holds: 'code' }, { label: 'called by', holds: 'text' }],
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
  const nodes = flame.nodes.map((n) => ({ ...n, find: (n.name + ' ' + n.place).toLowerCase(),
    text: n.name + (n.place ? ' · ' + n.place : '') + ' · ' + many(n.count, 'stack') }));
  const hit = "(!wanted || indexof(datum.find, wanted) >= 0)";
  const view = draw(stage, {
    width: stage.clientWidth || 900, height: (deepest + 1) * row,
    signals: [
      { name: 'wanted', value: '' },
      { name: 'low', value: 0, on: [{ events: '@bar:click', update: 'datum.x0' }] },
      { name: 'high', value: 1, on: [{ events: '@bar:click', update: 'datum.x1' }] },
    ],
    data: [
      { name: 'all', values: nodes, transform: [
        { type: 'stratify', key: 'id', parentKey: 'parent' },
        { type: 'partition', field: 'self', sort: { field: 'count', order: 'descending' }, size: [1, 1] }] },
      { name: 'seen', source: 'all', transform: [
        { type: 'filter', expr: 'datum.x1 > low + 1e-9 && datum.x0 < high - 1e-9 && (datum.x1 - datum.x0) / (high - low) * width > 0.8' },
        { type: 'formula', as: 'left', expr: 'clamp((datum.x0 - low) / (high - low), 0, 1) * width' },
        { type: 'formula', as: 'right', expr: 'clamp((datum.x1 - low) / (high - low), 0, 1) * width' }] },
    ],
    scales: [
      { name: 'fill', type: 'ordinal', domain: ['root', 'own', 'library', 'internal'],
        range: ['var(--bar-root)', 'var(--bar-own)', 'var(--bar-library)', 'var(--bar-internal)'] },
      { name: 'ink', type: 'ordinal', domain: ['root', 'own', 'library', 'internal'],
        range: ['var(--ink)', 'var(--bar-own-ink)', 'var(--ink)', 'var(--muted)'] },
    ],
    marks: [
      { type: 'rect', name: 'bar', from: { data: 'seen' }, encode: { update: {
        x: { field: 'left' }, x2: { signal: 'max(datum.right - 1, datum.left + 0.5)' }, y: { signal: `datum.depth * ${row}` }, height: { value: row - 1 },
        cornerRadius: { value: 2 }, fill: { scale: 'fill', field: 'whose' }, fillOpacity: { signal: `${hit} ? 1 : 0.25` },
        tooltip: { field: 'text' }, cursor: { value: 'pointer' } }, hover: { fillOpacity: { value: 0.8 } } } },
      { type: 'text', from: { data: 'seen' }, interactive: false, encode: { update: {
        x: { signal: 'datum.left + 6' }, y: { signal: `datum.depth * ${row} + ${row / 2 + 0.5}` }, baseline: { value: 'middle' },
        text: { signal: "datum.right - datum.left > 28 ? datum.name + (datum.parent === null || datum.right - datum.left > 260 ? '   ' + format(datum.count, ',') : '') : ''" },
        limit: { signal: 'max(datum.right - datum.left - 12, 1)' }, font: { value: MONO }, fontSize: { value: 11.5 },
        fill: { scale: 'ink', field: 'whose' }, fillOpacity: { signal: `${hit} ? 1 : 0.4` } } } },
    ],
  }, true);
  const id = fresh('search');
  const said = el('p', { class: 'said', role: 'status' });
  const input = el('input', { type: 'search', id, autocomplete: 'off', spellcheck: 'false', oninput: () => {
    const wanted = input.value.trim().toLowerCase();
    const found = nodes.filter((n) => n.find.includes(wanted)).length;
    view.signal('wanted', wanted).run();
    said.textContent = wanted ? many(found, 'frame') + ' found' + (found ? '; Enter looks closer' : '') : '';
  }, onkeydown: (event) => {
    if (event.key !== 'Enter' || !input.value.trim()) return;
    // The widest one: what a pointer would choose.
    const [widest] = view.data('all').filter((n) => n.find.includes(input.value.trim().toLowerCase())).sort((a, b) => b.count - a.count);
    if (!widest) return;
    view.signal('low', widest.x0).signal('high', widest.x1).run();
    said.textContent = widest.text;
  } });
  tools.append(el('label', { for: id }, 'Find'), input,
    el('button', { type: 'button', class: 'quiet', onclick: () => view.signal('low', 0).signal('high', 1).run() }, 'Show all'), said,
    el('p', { class: 'legend' }, ['own code', 'library', 'interpreter'].map((name, i) => el('span', {},
      el('i', { class: ['own', 'library', 'internal'][i], 'aria-hidden': 'true' }), name))));
  return view.runAsync();
}

// --- areas ---

function areaPicture(name, about, tree, frames) {
  const groups = new Map(tree.nodes.filter((n) => n.parent === 0).map((n) => [n.id, n.name]));
  const leaves = tree.nodes.filter((n) => n.value !== undefined);
  if (tree.left_out) about += ' ' + whole.format(tree.left_out) + ' of the smallest are left out.';
  const table = {
    id: fresh('area'), title: 'The same as a table', total: leaves.length,
    columns: [{ label: 'bytes', holds: 'bytes' }, { label: 'group', holds: 'code' }, { label: 'name', holds: 'code' }, { label: 'in words', holds: 'text' }],
    rows: leaves.map((n) => [n.value, groups.get(n.parent), n.name, n.text]),
  };
  return picture(name, about, (stage) => drawAreas(stage, tree), foldedTable(table, frames));
}

function drawAreas(stage, tree) {
  const width = stage.clientWidth || 900;
  return draw(stage, {
    width, height: Math.max(Math.min(width * 0.46, 440), 300),
    data: [
      { name: 'tree', values: tree.nodes.map((n) => ({ ...n, amount: bytes(n.value || n.total || 0) })), transform: [
        { type: 'stratify', key: 'id', parentKey: 'parent' },
        { type: 'treemap', field: 'value', sort: { field: 'value', order: 'descending' }, round: true, method: 'squarify', ratio: 1.6,
          paddingInner: 2, paddingTop: { signal: '20' }, size: [{ signal: 'width' }, { signal: 'height' }] }] },
      { name: 'groups', source: 'tree', transform: [{ type: 'filter', expr: 'datum.children > 0 && datum.depth === 1' }] },
      { name: 'leaves', source: 'tree', transform: [{ type: 'filter', expr: 'datum.children === 0 || !isValid(datum.children)' }] },
    ],
    scales: [{ name: 'fill', type: 'ordinal', domain: [0, 1, 2, 3, 4, 5, 6, 7],
      range: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => `var(--area-${i})`) }],
    marks: [
      { type: 'text', from: { data: 'tree' }, interactive: false, encode: { update: {
        x: { value: 2 }, y: { value: 14 }, text: { signal: "datum.parent === null ? datum.name : ''" }, font: { value: FONT }, fontSize: { value: 12 }, fill: { value: 'var(--muted)' } } } },
      { type: 'rect', from: { data: 'groups' }, encode: { update: {
        x: { field: 'x0' }, x2: { field: 'x1' }, y: { field: 'y0' }, y2: { field: 'y1' }, cornerRadius: { value: 3 },
        fill: { signal: "scale('fill', datum.group % 8)" }, fillOpacity: { value: 0.28 }, tooltip: { field: 'text' } } } },
      { type: 'rect', from: { data: 'leaves' }, encode: { update: {
        x: { field: 'x0' }, x2: { field: 'x1' }, y: { field: 'y0' }, y2: { field: 'y1' }, cornerRadius: { value: 2 },
        fill: { signal: "scale('fill', datum.group % 8)" }, fillOpacity: { value: 0.62 }, tooltip: { field: 'text' } },
        hover: { fillOpacity: { value: 0.85 } } } },
      { type: 'text', from: { data: 'groups' }, interactive: false, encode: { update: {
        x: { signal: 'datum.x0 + 6' }, y: { signal: 'datum.y0 + 14' }, font: { value: FONT }, fontSize: { value: 11.5 }, fontWeight: { value: 600 },
        limit: { signal: 'max(datum.x1 - datum.x0 - 10, 1)' }, fill: { value: 'var(--ink)' },
        text: { signal: "datum.x1 - datum.x0 > 34 && datum.y1 - datum.y0 > 18 ? datum.name + '  ' + datum.amount : ''" } } } },
      { type: 'text', from: { data: 'leaves' }, interactive: false, encode: { update: {
        x: { signal: 'datum.x0 + 6' }, y: { signal: 'datum.y0 + 15' }, font: { value: FONT }, fontSize: { value: 11.5 },
        limit: { signal: 'max(datum.x1 - datum.x0 - 10, 1)' }, fill: { value: 'var(--ink)' },
        text: { signal: "datum.x1 - datum.x0 > 40 && datum.y1 - datum.y0 > 20 ? datum.name : ''" } } } },
      { type: 'text', from: { data: 'leaves' }, interactive: false, encode: { update: {
        x: { signal: 'datum.x0 + 6' }, y: { signal: 'datum.y0 + 30' }, font: { value: FONT }, fontSize: { value: 11 },
        fill: { value: 'var(--ink)' }, fillOpacity: { value: 0.75 },
        text: { signal: "datum.x1 - datum.x0 > 64 && datum.y1 - datum.y0 > 38 ? datum.amount : ''" } } } },
    ],
  }, true).runAsync();
}

// --- growth ---

function linePicture(one, timed, frames) {
  const holds = one.unit;
  const last = (line) => line.points[line.points.length - 1][1];
  const times = [...new Set(one.lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const table = {
    id: fresh('growth'), title: 'The same as a table', total: one.lines.length,
    columns: [{ label: 'what', holds: 'text' }, ...times.map((t) => ({ label: timed ? seconds(t) : 'no. ' + t, holds }))],
    rows: one.lines.map((line) => [line.name, ...times.map((t) => (line.points.find((p) => p[0] === t) || [t, null])[1])]),
  };
  const figure = picture(one.title, one.left_out ? whole.format(one.left_out) + ' more left out.' : '',
    (stage) => drawLines(stage, one, timed), foldedTable(table, frames));
  figure.insertBefore(el('ul', { class: 'legend' }, one.lines.map((line, i) => el('li', {},
    el('i', { class: 'line-' + (i % 8), 'aria-hidden': 'true' }), line.name + ': ',
    el('b', {}, amount(line.points[0][1], holds) + ' → ' + amount(last(line), holds))))), figure.lastChild);
  return figure;
}

function drawLines(stage, one, timed) {
  const points = one.lines.flatMap((line, i) => line.points.map(([x, y]) => ({ x, y, line: i,
    text: line.name + ' · ' + amount(y, one.unit) + (timed ? ' after ' + seconds(x) : '') })));
  const label = one.unit === 'bytes' ? "format(datum.value, '.3~s') + 'B'" : "format(datum.value, '~s')";
  const axis = { domain: false, ticks: false, labelColor: 'var(--muted)', labelFont: FONT, labelFontSize: 11, labelPadding: 6, gridColor: 'var(--line)' };
  const width = (stage.clientWidth || 480) - 74;
  const view = draw(stage, {
    width, height: 190, autosize: 'none', padding: { left: 58, top: 10, right: 14, bottom: 24 },
    data: [{ name: 'points', values: points }],
    scales: [
      { name: 'x', type: 'linear', range: 'width', domain: { data: 'points', field: 'x' }, zero: false },
      { name: 'y', type: 'linear', range: 'height', domain: { data: 'points', field: 'y' }, zero: true, nice: 4 },
      { name: 'stroke', type: 'ordinal', domain: [0, 1, 2, 3, 4, 5, 6, 7], range: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => `var(--line-${i})`) },
    ],
    axes: [
      { ...axis, orient: 'left', scale: 'y', grid: true, tickCount: 4, encode: { labels: { update: { text: { signal: label } } } } },
      { ...axis, orient: 'bottom', scale: 'x', tickCount: 4, encode: { labels: { update: { text: { signal: timed ? "format(datum.value, '~s') + ' s'" : "format(datum.value, 'd')" } } } } },
    ],
    marks: [
      { type: 'group', from: { facet: { name: 'one', data: 'points', groupby: 'line' } }, marks: [
        { type: 'line', from: { data: 'one' }, interactive: false, encode: { update: { x: { scale: 'x', field: 'x' }, y: { scale: 'y', field: 'y' },
          stroke: { signal: "scale('stroke', datum.line % 8)" }, strokeWidth: { value: 2 } } } },
        { type: 'symbol', from: { data: 'one' }, encode: { update: { x: { scale: 'x', field: 'x' }, y: { scale: 'y', field: 'y' },
          size: { value: 46 }, fill: { signal: "scale('stroke', datum.line % 8)" }, stroke: { value: 'var(--surface)' }, tooltip: { field: 'text' } } } }] },
    ],
  }, false);
  new ResizeObserver(() => {
    const room = stage.clientWidth - 74;
    if (room > 0 && Math.abs(room - view.width()) > 1) view.width(room).run();
  }).observe(stage);
  return view.runAsync();
}
