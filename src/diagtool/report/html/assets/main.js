// Reads the data and fills the page.

function start() {
  const data = JSON.parse(document.getElementById('data').textContent);
  const main = document.getElementById('main');
  document.getElementById('verdict').textContent = data.verdict;
  document.getElementById('subject').textContent = data.subject;
  document.getElementById('version').textContent = data.diagtool;
  document
    .getElementById('facts')
    .append(...data.facts.map(([label, text]) => el('div', {}, el('dt', {}, label), el('dd', {}, text))));
  const sections = [findingsSection(data), ...pictureSections(data)];
  if (data.tables.length) {
    sections.push(
      section(
        'tables',
        'Tables',
        'Everything behind this report. Search looks into all columns and stacks.',
        data.tables.map((spec, i) => foldedTable(spec, data.frames, i === 0)),
      ),
    );
  }
  if (data.warnings.length) {
    sections.push(
      section(
        'warnings',
        'Warnings',
        'What could not be read, and why.',
        el(
          'ul',
          { class: 'warnings' },
          data.warnings.map((text) => el('li', {}, text)),
        ),
      ),
    );
  }
  main.append(...sections);
  document
    .getElementById('sections')
    .append(
      ...sections.map((one) => el('li', {}, el('a', { href: '#' + one.id }, one.querySelector('h2').textContent))),
    );
  drawAll();
}

// What is folded would be missing on paper.
addEventListener('beforeprint', () => {
  for (const details of document.querySelectorAll('details.runbook')) details.open = true;
});

start();
