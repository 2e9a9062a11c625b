// Shows values as Node's `util.inspect` shows them.

const ITEMS = 100;
const IDENTIFIER = /^[A-Za-z_$][\w$]*$/;

// Returns a value as text, with objects to a depth of two below it.
export function inspect(value, options = {}) {
  const depth = options.depth === null ? Infinity : (options.depth ?? 2);
  const state = { depth, compact: options.compact ?? 3, indent: 0, deepest: 0, seen: [], circular: new Map(), breakLength: options.breakLength ?? 80 };
  return show(state, value, 0);
}

export function quote(text) {
  let mark = "'";
  if (text.includes("'")) mark = text.includes('"') ? (text.includes('`') || text.includes('${') ? "'" : '`') : '"';
  const escaped = text.replace(/[\\\x00-\x1f\x7f-\x9f]/g, (character) => {
    const known = { '\n': '\\n', '\t': '\\t', '\r': '\\r', '\b': '\\b', '\f': '\\f', '\v': '\\v', '\\': '\\\\' };
    return known[character] ?? `\\x${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`;
  });
  return mark + escaped.replaceAll(mark, `\\${mark}`) + mark;
}

function showPrimitive(value) {
  if (typeof value === 'string') return quote(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (Object.is(value, -0)) return '-0';
  return String(value);
}

function show(state, value, level) {
  if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return showPrimitive(value);
  const custom = value[Symbol.for('nodejs.util.inspect.custom')];
  if (typeof custom === 'function') {
    const shown = custom.call(value, state.depth - level, {}, inspect);
    return typeof shown === 'string' ? shown : show(state, shown, level);
  }
  if (state.seen.includes(value)) {
    if (!state.circular.has(value)) state.circular.set(value, state.circular.size + 1);
    return `[Circular *${state.circular.get(value)}]`;
  }
  return showObject(state, value, level);
}

// Shows a value that stands in another, which is indented with it.
function nested(state, value, level) {
  state.indent += 2;
  const shown = show(state, value, level + 1);
  state.indent -= 2;
  return shown;
}

function constructorName(value) {
  for (let at = value; at !== null; at = Object.getPrototypeOf(at)) {
    const found = Object.getOwnPropertyDescriptor(at, 'constructor');
    if (found !== undefined && typeof found.value === 'function' && found.value.name !== '') return found.value.name;
  }
  return null;
}

function keysOf(value, isIndexed) {
  const keys = Object.keys(value).filter((key) => !isIndexed || !/^(?:0|[1-9]\d*)$/.test(key));
  const symbols = Object.getOwnPropertySymbols(value);
  return keys.concat(symbols.filter((symbol) => Object.prototype.propertyIsEnumerable.call(value, symbol)));
}

// How an object begins, what stands between its braces, and which braces.
function showObject(state, value, level) {
  const name = constructorName(value);
  const isIndexed = Array.isArray(value) || ArrayBuffer.isView(value);
  const keys = keysOf(value, isIndexed && !(value instanceof DataView));
  const shape = shapeOf(value, name, keys);
  if (shape.whole !== undefined && keys.length === 0) return shape.whole;
  const isEmpty = keys.length === 0 && (value.length === 0 || value.size === 0 || shape.items === undefined);
  if (level > state.depth && !isEmpty) return `[${shape.whole === undefined ? (Array.isArray(value) ? 'Array' : (name ?? 'Object: null prototype')) : shape.whole}]`;
  state.seen.push(value);
  if (!isEmpty) state.deepest = level;
  const parts = shape.items === undefined ? [] : shape.items(state, level);
  for (const key of keys) parts.push(showProperty(state, value, key, level));
  state.seen.pop();
  let prefix = shape.prefix;
  if (state.circular.has(value)) prefix = `<ref *${state.circular.get(value)}> ${prefix}`;
  if (shape.whole !== undefined) prefix = `${prefix}${shape.whole} `;
  if (parts.length === 0) return `${prefix}${shape.braces[0]}${shape.braces[1]}`;
  return combine(state, parts, prefix, shape.braces, level, shape.braces[0] === '[' ? value : undefined);
}

function shapeOf(value, name, keys) {
  const tag = value[Symbol.toStringTag];
  const isOwn = Object.prototype.propertyIsEnumerable.call(value, Symbol.toStringTag);
  const tagged = typeof tag === 'string' && tag !== '' && tag !== name && !isOwn ? ` [${tag}]` : '';
  const plain = name === null ? `[Object: null prototype]${tagged} ` : name === 'Object' && tagged === '' ? '' : `${name}${tagged} `;
  if (Array.isArray(value)) {
    const prefix = name === 'Array' ? '' : `${name ?? '[Array: null prototype]'}(${value.length}) `;
    return { prefix, braces: ['[', ']'], items: (state, level) => showItems(state, value, level) };
  }
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) {
    return { prefix: `${name}(${value.length}) `, braces: ['[', ']'], items: (state, level) => showItems(state, value, level) };
  }
  if (value instanceof Map) return { prefix: `${name}(${value.size}) `, braces: ['{', '}'], items: (state, level) => showMap(state, value, level) };
  if (value instanceof Set) return { prefix: `${name}(${value.size}) `, braces: ['{', '}'], items: (state, level) => [...value].map((item) => nested(state, item, level)) };
  if (typeof value === 'function') return { prefix: '', braces: ['{', '}'], whole: showFunction(value, name) };
  if (value instanceof Error) return { prefix: '', braces: ['{', '}'], whole: showError(value, keys) };
  if (value instanceof RegExp) return { prefix: '', braces: ['{', '}'], whole: RegExp.prototype.toString.call(value) };
  if (value instanceof Date) return { prefix: '', braces: ['{', '}'], whole: Number.isNaN(value.getTime()) ? 'Invalid Date' : value.toISOString() };
  if (value instanceof ArrayBuffer) return { prefix: 'ArrayBuffer ', braces: ['{', '}'], items: () => [`byteLength: ${value.byteLength}`] };
  if (value instanceof Promise) return { prefix: 'Promise ', braces: ['{', '}'], items: () => ['<state unknown>'] };
  if (value instanceof WeakMap || value instanceof WeakSet) return { prefix: `${name} `, braces: ['{', '}'], items: () => ['<items unknown>'] };
  for (const Boxed of [String, Number, Boolean, BigInt, Symbol]) {
    if (value instanceof Boxed) {
      if (Boxed === String) keys.splice(0, keys.filter((key) => /^\d+$/.test(String(key))).length);
      return { prefix: '', braces: ['{', '}'], whole: `[${Boxed.name}: ${showPrimitive(value.valueOf())}]` };
    }
  }
  return { prefix: plain, braces: ['{', '}'] };
}

function showItems(state, list, level) {
  const parts = [];
  const count = Math.min(ITEMS, list.length);
  for (let at = 0; at < count; at += 1) {
    if (!(at in list)) {
      let empty = 1;
      while (at + empty < list.length && !(at + empty in list)) empty += 1;
      parts.push(`<${empty} empty item${empty === 1 ? '' : 's'}>`);
      at += empty - 1;
    } else {
      parts.push(nested(state, list[at], level));
    }
  }
  const more = list.length - count;
  if (more > 0) parts.push(`... ${more} more item${more === 1 ? '' : 's'}`);
  return parts;
}

function showMap(state, map, level) {
  return [...map].map(([key, value]) => `${nested(state, key, level)} => ${nested(state, value, level)}`);
}

function showProperty(state, value, key, level) {
  const name = typeof key === 'symbol' ? `[${String(key)}]` : IDENTIFIER.test(key) ? key : quote(key);
  const found = Object.getOwnPropertyDescriptor(value, key);
  if (found !== undefined && found.get !== undefined) return `${name}: [Getter${found.set === undefined ? '' : '/Setter'}]`;
  if (found !== undefined && found.set !== undefined) return `${name}: [Setter]`;
  return `${name}: ${nested(state, value[key], level)}`;
}

function showFunction(value, name) {
  if (/^class[\s{]/.test(Function.prototype.toString.call(value))) {
    const parent = Object.getPrototypeOf(value);
    return `[class ${value.name || '(anonymous)'}${parent && parent.name ? ` extends ${parent.name}` : ''}]`;
  }
  return value.name ? `[${name ?? 'Function'}: ${value.name}]` : `[${name ?? 'Function'} (anonymous)]`;
}

function showError(error, keys) {
  const stack = error.stack;
  let text = typeof stack === 'string' && stack !== '' ? stack : `[${Error.prototype.toString.call(error)}]`;
  if (error.cause !== undefined && Object.hasOwn(error, 'cause')) keys.push('cause');
  if (Array.isArray(error.errors) && Object.hasOwn(error, 'errors')) keys.push('errors');
  return text;
}

// Lays parts out: on one line if they are short and nest no more than three levels, else each on its own line.
function combine(state, parts, prefix, braces, level, list) {
  const laid = list !== undefined && parts.length > 6 ? inColumns(state, parts, list) : parts;
  const open = prefix + braces[0];
  if (state.deepest - level < state.compact && laid === parts) {
    const length = parts.reduce((sum, part) => sum + part.length + 1, parts.length);
    const fits = length + state.indent + open.length + 10 <= state.breakLength;
    if (fits && !parts.some((part) => part.includes('\n'))) return `${open} ${parts.join(', ')} ${braces[1]}`;
  }
  const line = `\n${' '.repeat(state.indent)}`;
  return `${open}${line}  ${laid.join(`,${line}  `)}${line}${braces[1]}`;
}

// Puts the items of a long list in columns of equal width, about as many as make a block that is not too wide.
function inColumns(state, parts, list) {
  const count = list.length > ITEMS ? parts.length - 1 : parts.length;
  const widths = parts.slice(0, count).map((part) => part.length + 2);
  const total = widths.reduce((sum, width) => sum + width, 0);
  const widest = Math.max(...widths);
  if (widest * 3 + state.indent >= state.breakLength || (total / widest <= 5 && widest > 8)) return parts;
  const typical = Math.max(widest - 3 - Math.sqrt(widest - total / parts.length), 1);
  const columns = Math.min(
    Math.round(Math.sqrt(2.5 * typical * count) / typical),
    Math.floor((state.breakLength - state.indent) / widest),
    state.compact * 4,
    15,
  );
  if (columns <= 1) return parts;
  const columnWidths = Array.from({ length: columns }, (_, column) =>
    Math.max(...widths.filter((_, at) => at % columns === column)));
  const isNumeric = Array.prototype.every.call(list, (item) => typeof item === 'number' || typeof item === 'bigint');
  const lines = [];
  for (let start = 0; start < count; start += columns) {
    const row = parts.slice(start, Math.min(start + columns, count));
    lines.push(row.map((part, column) => {
      const isLast = column === row.length - 1;
      const text = isLast ? part : `${part}, `;
      const width = columnWidths[column] - (isLast ? 2 : 0);
      if (isNumeric) return text.padStart(width);
      return isLast ? text : text.padEnd(width);
    }).join(''));
  }
  return parts.length > count ? [...lines, parts[count]] : lines;
}

const PLACEHOLDER = /%[sdifjoOc%]/g;

// Joins the arguments of `console.log`: the first may have places for the next.
export function format(...values) {
  let text = '';
  let next = 0;
  if (typeof values[0] === 'string') {
    next = 1;
    text = values.length === 1 ? values[0] : values[0].replace(PLACEHOLDER, (place) => {
      if (place === '%%') return '%';
      if (next >= values.length) return place;
      const value = values[next];
      next += 1;
      return fill(place, value);
    });
    if (next === values.length) return text;
    text += ' ';
  }
  return text + values.slice(next).map((value) => (typeof value === 'string' ? value : inspect(value))).join(' ');
}

function fill(place, value) {
  switch (place) {
    case '%s':
      if (typeof value === 'string') return value;
      if (typeof value === 'object' && value !== null) return inspect(value, { depth: 0 });
      return typeof value === 'function' ? String(value) : showPrimitive(value);
    case '%d': return typeof value === 'bigint' ? `${value}n` : showPrimitive(Number(value));
    case '%i': return typeof value === 'bigint' ? `${value}n` : showPrimitive(Number.parseInt(value, 10));
    case '%f': return showPrimitive(Number.parseFloat(value));
    case '%j': return JSON.stringify(value);
    case '%c': return '';
    case '%o': return inspect(value, { depth: 4 });
    default: return inspect(value);
  }
}
