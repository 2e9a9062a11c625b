// `Buffer` of Node, as far as programs commonly use it.

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export class Buffer extends Uint8Array {
  static from(value, encoding, length) {
    if (typeof value === 'string') return adopt(encode(value, encoding));
    if (value instanceof ArrayBuffer) return new Buffer(value, encoding ?? 0, length ?? value.byteLength - (encoding ?? 0));
    if (value?.type === 'Buffer' && Array.isArray(value.data)) return adopt(Uint8Array.from(value.data));
    return adopt(Uint8Array.from(value));
  }

  static alloc(size, fill = 0, encoding = 'utf8') {
    const buffer = new Buffer(size);
    if (fill !== 0) buffer.fill(fill, 0, size, encoding);
    return buffer;
  }

  static allocUnsafe(size) {
    return new Buffer(size);
  }

  static isBuffer(value) {
    return value instanceof Buffer;
  }

  static byteLength(value, encoding) {
    return typeof value === 'string' ? encode(value, encoding).length : value.byteLength;
  }

  static concat(list, total = list.reduce((sum, part) => sum + part.length, 0)) {
    const whole = new Buffer(total);
    let at = 0;
    for (const part of list) {
      whole.set(part.subarray(0, total - at), at);
      at += part.length;
    }
    return whole;
  }

  static compare(one, other) {
    for (let at = 0; at < Math.min(one.length, other.length); at += 1) {
      if (one[at] !== other[at]) return one[at] < other[at] ? -1 : 1;
    }
    return Math.sign(one.length - other.length);
  }

  toString(encoding = 'utf8', start = 0, end = this.length) {
    return decode(this.subarray(start, end), encoding);
  }

  toJSON() {
    return { type: 'Buffer', data: [...this] };
  }

  equals(other) {
    return Buffer.compare(this, other) === 0;
  }

  compare(other) {
    return Buffer.compare(this, other);
  }

  slice(start, end) {
    return this.subarray(start, end);
  }

  write(text, offset = 0, encoding = 'utf8') {
    const bytes = encode(text, encoding).subarray(0, this.length - offset);
    this.set(bytes, offset);
    return bytes.length;
  }

  fill(value, start = 0, end = this.length, encoding = 'utf8') {
    if (typeof value !== 'string') return super.fill(value, start, end);
    const bytes = encode(value, encoding);
    for (let at = start; at < end && bytes.length > 0; at += 1) this[at] = bytes[(at - start) % bytes.length];
    return this;
  }

  copy(target, targetStart = 0, start = 0, end = this.length) {
    const part = this.subarray(start, Math.min(end, start + target.length - targetStart));
    target.set(part, targetStart);
    return part.length;
  }

  [Symbol.for('nodejs.util.inspect.custom')]() {
    const shown = [...this.subarray(0, 50)].map((byte) => byte.toString(16).padStart(2, '0'));
    const more = this.length - 50;
    return `<Buffer${shown.map((byte) => ` ${byte}`).join('')}${more > 0 ? ` ... ${more} more byte${more === 1 ? '' : 's'}` : ''}>`;
  }
}

// The numbers that a buffer reads and writes, with the methods of `DataView` that do it.
for (const [name, method, size] of [
  ['UInt16', 'Uint16', 2], ['UInt32', 'Uint32', 4], ['Int16', 'Int16', 2], ['Int32', 'Int32', 4], ['Float', 'Float32', 4],
  ['Double', 'Float64', 8], ['BigUInt64', 'BigUint64', 8], ['BigInt64', 'BigInt64', 8],
]) {
  for (const order of ['LE', 'BE']) {
    const isLittle = order === 'LE';
    define(`read${name}${order}`, function read(offset = 0) {
      return viewOf(this)[`get${method}`](offset, isLittle);
    });
    define(`write${name}${order}`, function write(value, offset = 0) {
      viewOf(this)[`set${method}`](offset, value, isLittle);
      return offset + size;
    });
  }
}
for (const [name, method] of [['UInt8', 'Uint8'], ['Int8', 'Int8']]) {
  define(`read${name}`, function read(offset = 0) {
    return viewOf(this)[`get${method}`](offset);
  });
  define(`write${name}`, function write(value, offset = 0) {
    viewOf(this)[`set${method}`](offset, value);
    return offset + 1;
  });
}

function define(name, value) {
  Object.defineProperty(Buffer.prototype, name, { value, writable: true, configurable: true });
}

function viewOf(buffer) {
  return new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

function adopt(bytes) {
  return new Buffer(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function encode(text, encoding = 'utf8') {
  switch (String(encoding).toLowerCase()) {
    case 'utf8': case 'utf-8': return encoder.encode(text);
    case 'hex': return Uint8Array.from(text.match(/[0-9a-f]{2}/gi) ?? [], (pair) => Number.parseInt(pair, 16));
    case 'base64': case 'base64url': {
      const plain = text.replaceAll('-', '+').replaceAll('_', '/').replace(/[^A-Za-z0-9+/]/g, '');
      return Uint8Array.from(atob(plain.slice(0, plain.length - (plain.length % 4 === 1 ? 1 : 0))), (character) => character.charCodeAt(0));
    }
    case 'latin1': case 'binary': case 'ascii': return Uint8Array.from(text, (character) => character.charCodeAt(0) & 0xff);
    case 'utf16le': case 'ucs2': case 'utf-16le': case 'ucs-2': return new Uint8Array(Uint16Array.from(text.split(''), (unit) => unit.charCodeAt(0)).buffer);
    default: throw new TypeError(`Unknown encoding: ${encoding}`);
  }
}

function decode(bytes, encoding) {
  switch (String(encoding).toLowerCase()) {
    case 'utf8': case 'utf-8': return decoder.decode(bytes);
    case 'hex': return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
    case 'base64': return btoa(characters(bytes));
    case 'base64url': return btoa(characters(bytes)).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '');
    case 'latin1': case 'binary': return characters(bytes);
    case 'ascii': return characters(bytes.map((byte) => byte & 0x7f));
    case 'utf16le': case 'ucs2': case 'utf-16le': case 'ucs-2': return new TextDecoder('utf-16le').decode(bytes);
    default: throw new TypeError(`Unknown encoding: ${encoding}`);
  }
}

function characters(bytes) {
  let text = '';
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return text;
}
