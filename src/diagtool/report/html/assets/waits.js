// Who waits for whom: boxes and arrows, laid out by dagre, drawn by Vega.

function waitTable(waits) {
  const texts = waits.boxes.map((box) => box.text);
  return {
    id: 'waits',
    title: 'The same as a table',
    columns: [
      { label: 'who', holds: 'text' },
      { label: 'does', holds: 'text' },
      { label: 'whom or what', holds: 'text' },
      { label: 'count', holds: 'count' },
    ],
    rows: waits.arrows.map((a) => [texts[a.from], a.text, texts[a.to], a.count]),
    total: waits.arrows.length,
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
  waits.arrows.forEach((arrow, i) =>
    graph.setEdge(
      String(arrow.from),
      String(arrow.to),
      { width: measure([arrow.text], `11px ${FONT}`) + 4, height: 12, labelpos: 'c' },
      String(i),
    ),
  );
  charts.layout(graph);
  const boxes = waits.boxes.map((box) => {
    const at = graph.node(String(box.id));
    return { ...box, x: at.x - at.width / 2, y: at.y - at.height / 2, width: at.width, height: at.height };
  });
  const lines = boxes.flatMap((box) =>
    box.lines.map((text, i) => ({ text, x: box.x + 14, y: box.y + 38 + 16 * i, verdict: box.verdict })),
  );
  const edges = graph.edges().map((e) => ({ arrow: waits.arrows[Number(e.name)], ...graph.edge(e), edge: e.name }));
  const points = edges.flatMap((e) => e.points.map((p) => ({ x: p.x, y: p.y, edge: e.edge })));
  const heads = edges.map((e) => {
    const [before, last] = e.points.slice(-2);
    const angle = Math.atan2(last.y - before.y, last.x - before.x);
    return {
      x: last.x - 5 * Math.cos(angle),
      y: last.y - 5 * Math.sin(angle),
      angle: (angle * 180) / Math.PI + 90,
    };
  });
  const labels = edges.map((e) => ({ x: e.x, y: e.y, text: e.arrow.text }));
  const size = graph.graph();
  const view = draw(
    stage,
    {
      width: size.width,
      height: size.height,
      autosize: 'none',
      data: [
        { name: 'points', values: points },
        { name: 'heads', values: heads },
        { name: 'labels', values: labels },
        { name: 'boxes', values: boxes },
        { name: 'lines', values: lines },
      ],
      scales: [
        {
          name: 'edge',
          type: 'ordinal',
          domain: ['proven', 'likely', 'suspect', 'idle', ''],
          range: ['var(--proven)', 'var(--likely)', 'var(--suspect)', 'var(--line)', 'var(--line-strong)'],
        },
      ],
      marks: [
        {
          type: 'group',
          from: { facet: { name: 'one', data: 'points', groupby: 'edge' } },
          interactive: false,
          marks: [
            {
              type: 'line',
              from: { data: 'one' },
              encode: {
                enter: {
                  x: { field: 'x' },
                  y: { field: 'y' },
                  interpolate: { value: 'monotone' },
                  stroke: { value: 'var(--muted)' },
                  strokeWidth: { value: 1.4 },
                },
              },
            },
          ],
        },
        {
          type: 'symbol',
          from: { data: 'heads' },
          interactive: false,
          encode: {
            enter: {
              x: { field: 'x' },
              y: { field: 'y' },
              angle: { field: 'angle' },
              shape: { value: 'triangle' },
              size: { value: 60 },
              fill: { value: 'var(--muted)' },
            },
          },
        },
        {
          type: 'text',
          from: { data: 'labels' },
          interactive: false,
          encode: {
            enter: {
              x: { field: 'x' },
              y: { field: 'y' },
              text: { field: 'text' },
              align: { value: 'center' },
              baseline: { value: 'bottom' },
              dy: { value: -2 },
              font: { value: FONT },
              fontSize: { value: 11 },
              fill: { value: 'var(--muted)' },
            },
          },
        },
        {
          type: 'rect',
          from: { data: 'boxes' },
          encode: {
            enter: {
              x: { field: 'x' },
              y: { field: 'y' },
              width: { field: 'width' },
              height: { field: 'height' },
              tooltip: { field: 'text' },
              cornerRadius: { signal: "datum.kind === 'thing' ? 14 : 5" },
              fill: { signal: "datum.kind === 'thing' ? 'var(--paper)' : 'var(--surface)'" },
              stroke: { scale: 'edge', field: 'verdict' },
              strokeWidth: { signal: "datum.verdict && datum.verdict !== 'idle' ? 2.2 : 1.2" },
              strokeDash: { signal: "datum.kind === 'thing' ? [4, 3] : []" },
            },
          },
        },
        {
          type: 'text',
          from: { data: 'boxes' },
          interactive: false,
          encode: {
            enter: {
              x: { signal: 'datum.x + 14' },
              y: { signal: 'datum.y + 21' },
              text: { field: 'title' },
              font: { value: FONT },
              fontSize: { value: 13 },
              fontWeight: { value: 600 },
              fill: { signal: "datum.verdict === 'idle' ? 'var(--muted)' : 'var(--ink)'" },
            },
          },
        },
        {
          type: 'text',
          from: { data: 'lines' },
          interactive: false,
          encode: {
            enter: {
              x: { field: 'x' },
              y: { field: 'y' },
              text: { field: 'text' },
              font: { value: FONT },
              fontSize: { value: 11.5 },
              fill: { value: 'var(--muted)' },
            },
          },
        },
      ],
    },
    false,
  );
  // A little smaller rather than scrolled.
  return view.runAsync().then(() => {
    const scale = Math.min(1, Math.max(0.72, stage.clientWidth / size.width));
    const svg = stage.querySelector('svg');
    svg.setAttribute('width', size.width * scale);
    svg.setAttribute('height', size.height * scale);
  });
}
