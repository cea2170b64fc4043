// Amounts as areas, by Vega's treemap.

function areaPicture(name, about, tree, frames) {
  const groups = new Map(tree.nodes.filter((n) => n.parent === 0).map((n) => [n.id, n.name]));
  const leaves = tree.nodes.filter((n) => n.value !== undefined);
  if (tree.left_out) about += ' ' + whole.format(tree.left_out) + ' of the smallest are left out.';
  const table = {
    id: fresh('area'),
    title: 'The same as a table',
    total: leaves.length,
    columns: [
      { label: 'bytes', holds: 'bytes' },
      { label: 'group', holds: 'code' },
      { label: 'name', holds: 'code' },
      { label: 'in words', holds: 'text' },
    ],
    rows: leaves.map((n) => [n.value, groups.get(n.parent), n.name, n.text]),
  };
  return picture(name, about, (stage) => drawAreas(stage, tree), foldedTable(table, frames));
}

function drawAreas(stage, tree) {
  const width = stage.clientWidth || 900;
  return draw(
    stage,
    {
      width,
      height: Math.max(Math.min(width * 0.46, 440), 300),
      data: [
        {
          name: 'tree',
          values: tree.nodes.map((n) => ({ ...n, amount: bytes(n.value || n.total || 0) })),
          transform: [
            { type: 'stratify', key: 'id', parentKey: 'parent' },
            {
              type: 'treemap',
              field: 'value',
              sort: { field: 'value', order: 'descending' },
              round: true,
              method: 'squarify',
              ratio: 1.6,
              paddingInner: 2,
              paddingTop: { signal: '20' },
              size: [{ signal: 'width' }, { signal: 'height' }],
            },
          ],
        },
        {
          name: 'groups',
          source: 'tree',
          transform: [{ type: 'filter', expr: 'datum.children > 0 && datum.depth === 1' }],
        },
        {
          name: 'leaves',
          source: 'tree',
          transform: [{ type: 'filter', expr: 'datum.children === 0 || !isValid(datum.children)' }],
        },
      ],
      scales: [
        {
          name: 'fill',
          type: 'ordinal',
          domain: [0, 1, 2, 3, 4, 5, 6, 7],
          range: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => `var(--area-${i})`),
        },
      ],
      marks: [
        {
          type: 'text',
          from: { data: 'tree' },
          interactive: false,
          encode: {
            update: {
              x: { value: 2 },
              y: { value: 14 },
              text: { signal: "datum.parent === null ? datum.name : ''" },
              font: { value: FONT },
              fontSize: { value: 12 },
              fill: { value: 'var(--muted)' },
            },
          },
        },
        {
          type: 'rect',
          from: { data: 'groups' },
          encode: {
            update: {
              x: { field: 'x0' },
              x2: { field: 'x1' },
              y: { field: 'y0' },
              y2: { field: 'y1' },
              cornerRadius: { value: 3 },
              fill: { signal: "scale('fill', datum.group % 8)" },
              fillOpacity: { value: 0.28 },
              tooltip: { field: 'text' },
            },
          },
        },
        {
          type: 'rect',
          from: { data: 'leaves' },
          encode: {
            update: {
              x: { field: 'x0' },
              x2: { field: 'x1' },
              y: { field: 'y0' },
              y2: { field: 'y1' },
              cornerRadius: { value: 2 },
              fill: { signal: "scale('fill', datum.group % 8)" },
              fillOpacity: { value: 0.62 },
              tooltip: { field: 'text' },
            },
            hover: { fillOpacity: { value: 0.85 } },
          },
        },
        {
          type: 'text',
          from: { data: 'groups' },
          interactive: false,
          encode: {
            update: {
              x: { signal: 'datum.x0 + 6' },
              y: { signal: 'datum.y0 + 14' },
              font: { value: FONT },
              fontSize: { value: 11.5 },
              fontWeight: { value: 600 },
              limit: { signal: 'max(datum.x1 - datum.x0 - 10, 1)' },
              fill: { value: 'var(--ink)' },
              text: {
                signal:
                  "datum.x1 - datum.x0 > 34 && datum.y1 - datum.y0 > 18 ? datum.name + '  ' + datum.amount : ''",
              },
            },
          },
        },
        {
          type: 'text',
          from: { data: 'leaves' },
          interactive: false,
          encode: {
            update: {
              x: { signal: 'datum.x0 + 6' },
              y: { signal: 'datum.y0 + 15' },
              font: { value: FONT },
              fontSize: { value: 11.5 },
              limit: { signal: 'max(datum.x1 - datum.x0 - 10, 1)' },
              fill: { value: 'var(--ink)' },
              text: { signal: "datum.x1 - datum.x0 > 40 && datum.y1 - datum.y0 > 20 ? datum.name : ''" },
            },
          },
        },
        {
          type: 'text',
          from: { data: 'leaves' },
          interactive: false,
          encode: {
            update: {
              x: { signal: 'datum.x0 + 6' },
              y: { signal: 'datum.y0 + 30' },
              font: { value: FONT },
              fontSize: { value: 11 },
              fill: { value: 'var(--ink)' },
              fillOpacity: { value: 0.75 },
              text: { signal: "datum.x1 - datum.x0 > 64 && datum.y1 - datum.y0 > 38 ? datum.amount : ''" },
            },
          },
        },
      ],
    },
    true,
  ).runAsync();
}
