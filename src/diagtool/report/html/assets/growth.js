// How numbers went over a series of snapshots: lines.

function linePicture(one, timed, frames) {
  const holds = one.unit;
  const last = (line) => line.points[line.points.length - 1][1];
  const times = [...new Set(one.lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const at = (line, t) => (line.points.find((p) => p[0] === t) || [t, null])[1];
  const moment = (t) => (timed ? seconds(t) : 'no. ' + t);
  const shared = { id: fresh('growth'), title: 'The same as a table' };
  // Many moments go down the page, few go across it.
  const table =
    times.length > 12
      ? {
          ...shared,
          total: times.length,
          columns: [{ label: 'after', holds: 'text' }, ...one.lines.map((line) => ({ label: line.name, holds }))],
          rows: times.map((t) => [moment(t), ...one.lines.map((line) => at(line, t))]),
        }
      : {
          ...shared,
          total: one.lines.length,
          columns: [{ label: 'what', holds: 'text' }, ...times.map((t) => ({ label: moment(t), holds }))],
          rows: one.lines.map((line) => [line.name, ...times.map((t) => at(line, t))]),
        };
  const figure = picture(
    one.title,
    one.left_out ? whole.format(one.left_out) + ' more left out.' : '',
    (stage) => drawLines(stage, one, timed),
    foldedTable(table, frames),
  );
  figure.insertBefore(
    el(
      'ul',
      { class: 'legend' },
      one.lines.map((line, i) =>
        el(
          'li',
          {},
          el('i', { class: 'line-' + (i % 8), 'aria-hidden': 'true' }),
          line.name + ': ',
          el('b', {}, amount(line.points[0][1], holds) + ' → ' + amount(last(line), holds)),
        ),
      ),
    ),
    figure.lastChild,
  );
  return figure;
}

function drawLines(stage, one, timed) {
  const points = one.lines.flatMap((line, i) =>
    line.points.map(([x, y]) => ({
      x,
      y,
      line: i,
      text: line.name + ' · ' + amount(y, one.unit) + (timed ? ' after ' + seconds(x) : ''),
    })),
  );
  const label = one.unit === 'bytes' ? "format(datum.value, '.3~s') + 'B'" : "format(datum.value, '~s')";
  const axis = {
    domain: false,
    ticks: false,
    labelColor: 'var(--muted)',
    labelFont: FONT,
    labelFontSize: 11,
    labelPadding: 6,
    gridColor: 'var(--line)',
  };
  const width = (stage.clientWidth || 480) - 74;
  const view = draw(
    stage,
    {
      width,
      height: 190,
      autosize: 'none',
      padding: { left: 58, top: 10, right: 14, bottom: 24 },
      data: [{ name: 'points', values: points }],
      scales: [
        { name: 'x', type: 'linear', range: 'width', domain: { data: 'points', field: 'x' }, zero: false },
        { name: 'y', type: 'linear', range: 'height', domain: { data: 'points', field: 'y' }, zero: true, nice: 4 },
        {
          name: 'stroke',
          type: 'ordinal',
          domain: [0, 1, 2, 3, 4, 5, 6, 7],
          range: [0, 1, 2, 3, 4, 5, 6, 7].map((i) => `var(--line-${i})`),
        },
      ],
      axes: [
        {
          ...axis,
          orient: 'left',
          scale: 'y',
          grid: true,
          tickCount: 4,
          encode: { labels: { update: { text: { signal: label } } } },
        },
        {
          ...axis,
          orient: 'bottom',
          scale: 'x',
          tickCount: 4,
          encode: {
            labels: {
              update: { text: { signal: timed ? "format(datum.value, '~s') + ' s'" : "format(datum.value, 'd')" } },
            },
          },
        },
      ],
      marks: [
        {
          type: 'group',
          from: { facet: { name: 'one', data: 'points', groupby: 'line' } },
          marks: [
            {
              type: 'line',
              from: { data: 'one' },
              interactive: false,
              encode: {
                update: {
                  x: { scale: 'x', field: 'x' },
                  y: { scale: 'y', field: 'y' },
                  stroke: { signal: "scale('stroke', datum.line % 8)" },
                  strokeWidth: { value: 2 },
                },
              },
            },
            {
              type: 'symbol',
              from: { data: 'one' },
              encode: {
                update: {
                  x: { scale: 'x', field: 'x' },
                  y: { scale: 'y', field: 'y' },
                  size: { value: one.lines[0].points.length > 12 ? 14 : 46 },
                  fill: { signal: "scale('stroke', datum.line % 8)" },
                  stroke: { value: 'var(--surface)' },
                  tooltip: { field: 'text' },
                },
              },
            },
          ],
        },
      ],
    },
    false,
  );
  new ResizeObserver(() => {
    const room = stage.clientWidth - 74;
    if (room > 0 && Math.abs(room - view.width()) > 1) view.width(room).run();
  }).observe(stage);
  return view.runAsync();
}
