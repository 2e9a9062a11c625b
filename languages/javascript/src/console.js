// `console` of Node.

import { format, inspect } from './inspect.js';
import { writeErr, writeOut } from './streams.js';

let indent = '';
const counts = new Map();
const started = new Map();

function line(values) {
  const text = format(...values);
  return indent === '' ? `${text}\n` : `${indent}${text.replaceAll('\n', `\n${indent}`)}\n`;
}

function log(...values) {
  writeOut(values.length === 1 && typeof values[0] === 'string' && indent === '' ? `${values[0]}\n` : line(values));
}

function error(...values) {
  writeErr(line(values));
}

// Returns the rows and columns of `console.table` in a frame.
function table(data, only) {
  if (data === null || typeof data !== 'object') return inspect(data);
  const rows = data instanceof Map ? [...data] : Object.entries(data);
  const names = [];
  for (const [, row] of rows) {
    if (row === null || typeof row !== 'object') continue;
    for (const name of Object.keys(row)) if (!names.includes(name)) names.push(name);
  }
  const columns = only ?? names;
  const hasValues = rows.some(([, row]) => row === null || typeof row !== 'object');
  const head = ['(index)', ...columns, ...(hasValues ? ['Values'] : [])];
  const body = rows.map(([key, row]) => {
    const isRow = row !== null && typeof row === 'object';
    const cells = columns.map((name) => (isRow && Object.hasOwn(row, name) ? inspect(row[name], { depth: 0 }) : ''));
    return [String(key), ...cells, ...(hasValues ? [isRow ? '' : inspect(row)] : [])];
  });
  const widths = head.map((name, at) => Math.max(name.length, ...body.map((row) => row[at].length)) + 2);
  const rule = (left, middle, right) => left + widths.map((width) => '─'.repeat(width)).join(middle) + right;
  const cell = (text, at) => {
    const before = Math.floor((widths[at] - text.length) / 2);
    return ' '.repeat(before) + text + ' '.repeat(widths[at] - text.length - before);
  };
  const lineOf = (row) => `│${row.map(cell).join('│')}│`;
  return [rule('┌', '┬', '┐'), lineOf(head), rule('├', '┼', '┤'), ...body.map(lineOf), rule('└', '┴', '┘')].join('\n');
}

function elapsed(label) {
  const time = performance.now() - (started.get(label) ?? performance.now());
  return time >= 1000 ? `${label}: ${(time / 1000).toFixed(3)}s` : `${label}: ${time.toFixed(3)}ms`;
}

export const console = {
  log,
  info: log,
  debug: log,
  error,
  warn: error,
  trace: (...values) => {
    const stack = new Error(format(...values)).stack.replace(/^Error/, 'Trace');
    writeErr(`${stack}\n`);
  },
  dir: (value, options) => writeOut(`${inspect(value, options)}\n`),
  dirxml: log,
  table: (data, columns) => log(table(data, columns)),
  assert: (isTrue, ...values) => {
    if (!isTrue) error(...(values.length === 0 ? ['Assertion failed'] : [`Assertion failed: ${format(...values)}`]));
  },
  count: (label = 'default') => {
    counts.set(label, (counts.get(label) ?? 0) + 1);
    log(`${label}: ${counts.get(label)}`);
  },
  countReset: (label = 'default') => {
    counts.delete(label);
  },
  group: (...values) => {
    if (values.length > 0) log(...values);
    indent += '  ';
  },
  groupEnd: () => {
    indent = indent.slice(2);
  },
  time: (label = 'default') => {
    started.set(label, performance.now());
  },
  timeEnd: (label = 'default') => {
    log(elapsed(label));
    started.delete(label);
  },
  timeLog: (label = 'default', ...values) => log(elapsed(label), ...values),
};
console.groupCollapsed = console.group;
