// Pictures: specifications for Vega, positions of boxes by dagre. Colours are those of the style sheet.
// Each picture has a table with the same in it; for a screen reader the picture itself is not there.

const FONT = 'system-ui, sans-serif';
const MONO = 'ui-monospace, monospace';
const pending = [];

function picture(name, about, make, table, alone) {
  const stage = el('div', { class: 'stage', 'aria-hidden': 'true' });
  const tools = el('div', { class: 'tools' });
  pending.push(() => make(stage, tools));
  return el(
    'figure',
    { class: 'picture' },
    el('figcaption', {}, alone ? null : el('h3', {}, name), about ? el('p', {}, about) : null),
    tools,
    el('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': name + ' (picture)' }, stage),
    table,
  );
}

// One after the other, with room for the page to react in between.
async function drawAll() {
  for (const make of pending.splice(0)) {
    await new Promise((resolve) => {
      setTimeout(resolve);
    });
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
  hint.style.top = event.clientY + 18 + 'px';
}

function draw(stage, spec, fits) {
  const config = { background: null, padding: 0, autosize: fits ? 'none' : 'pad' };
  const runtime = charts.parse({ ...config, ...spec }, null, { ast: true });
  const view = new charts.View(runtime, {
    expr: charts.expressionInterpreter,
    renderer: 'svg',
    container: stage,
    hover: true,
    logLevel: 1,
  });
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
    out.push(
      section(
        'waits',
        'Who waits for whom',
        null,
        picture(
          'Waits and locks',
          'Stacks that are alike are one box; an arrow leads to what they wait on, and from there to who has it.' +
            (data.waits.left_out ? ' ' + many(data.waits.left_out, 'smaller cluster') + ' left out.' : ''),
          (stage) => drawWaits(stage, data.waits),
          foldedTable(waitTable(data.waits), data.frames),
          true,
        ),
      ),
    );
  }
  if (data.flame) {
    const missing = data.flame.left_out
      ? ' ' + whole.format(data.flame.left_out) + ' of the smallest bars are left out.'
      : '';
    out.push(
      section(
        'flame',
        'All stacks',
        null,
        picture(
          'Stacks by number',
          'The outermost frame is at the top; a bar is as wide as the number of stacks that go through it. ' +
            'Choose a bar to look closer, the top one to go back.' +
            missing,
          (stage, tools) => drawFlame(stage, tools, data.flame),
          foldedTable(flameTable(data.flame), data.frames),
          true,
        ),
      ),
    );
  }
  const areas = [
    data.heap &&
      areaPicture(
        'Objects by module and type',
        'An area is as large as the bytes of all objects of a type.',
        data.heap,
        data.frames,
      ),
    data.containers &&
      areaPicture(
        'Largest containers, with what they keep',
        'By where they are held. What lies in a container that lies in another counts in both.',
        data.containers,
        data.frames,
      ),
    data.kept &&
      areaPicture(
        'What types keep',
        'What would be free without the objects of a type. What two types keep together counts for neither.',
        data.kept,
        data.frames,
      ),
    data.memory &&
      areaPicture(
        'Resident memory by owner',
        'Whose the memory in use is; of allocators what is in use and what is free.',
        data.memory,
        data.frames,
      ),
  ].filter(Boolean);
  if (areas.length) out.push(section('memory', 'Memory', null, areas));
  if (data.timeline) {
    out.push(
      section(
        'timeline',
        'Over time',
        'Goroutines while they were traced, for ' + seconds(data.timeline.seconds) + '.',
        el(
          'div',
          { class: 'lines' },
          data.timeline.pictures.map((one) => linePicture(one, true, data.frames)),
        ),
      ),
    );
  }
  if (data.growth) {
    out.push(
      section(
        'growth',
        'Growth',
        many(data.growth.snapshots, 'snapshot') + ' of one process, oldest first.',
        el(
          'div',
          { class: 'lines' },
          data.growth.pictures.map((one) => linePicture(one, data.growth.timed, data.frames)),
        ),
      ),
    );
  }
  return out;
}
