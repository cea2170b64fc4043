// Elements and texts. Nothing of a snapshot is ever parsed as markup: it becomes text nodes.

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : String(value));
  }
  put(node, children);
  return node;
}

function put(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== '') node.append(child);
  }
}

const whole = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en-US', { maximumSignificantDigits: 3 });

function many(number, noun) {
  return whole.format(number) + ' ' + noun + (number === 1 ? '' : 's');
}

function bytes(number) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  let power = 0;
  let rest = Math.abs(number);
  while (rest >= 1000 && power < units.length - 1) {
    rest /= 1000;
    power += 1;
  }
  return (number < 0 ? '-' : '') + short.format(rest) + ' ' + units[power];
}

function seconds(number) {
  if (number < 1) return whole.format(number * 1000) + ' ms';
  if (number < 120) return short.format(number) + ' s';
  if (number < 7200) return whole.format(number / 60) + ' min';
  return short.format(number / 3600) + ' h';
}

function amount(value, holds) {
  if (value === null || value === undefined) return '';
  if (typeof value !== 'number' || holds === 'id') return String(value);
  if (holds === 'bytes') return bytes(value);
  if (holds === 'seconds') return seconds(value);
  return whole.format(value);
}

// Text in which `this` is code.
function withCode(text) {
  return text
    .split('`')
    .map((part, i, all) => (i % 2 && i < all.length - 1 ? el('code', {}, part) : (i % 2 ? '`' : '') + part));
}

let numbers = 0;
function fresh(prefix) {
  numbers += 1;
  return prefix + '-' + numbers;
}

function section(id, title, about, ...children) {
  return el(
    'section',
    { id, 'aria-labelledby': id + '-title' },
    el('h2', { id: id + '-title' }, title),
    about ? el('p', { class: 'about' }, about) : null,
    children,
  );
}
