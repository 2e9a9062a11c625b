// Modules of any size.

/** Appends a custom section to a module, which then has exactly `size` bytes and does what it did. */
export function padded(wasm: Uint8Array, size: number): Uint8Array<ArrayBuffer> {
  const name = new TextEncoder().encode('padding');
  // The length of a section is written in five bytes, however small it is.
  const head = 1 + 5 + 1 + name.length;
  const filling = size - wasm.length - head;
  if (filling < 0) throw new Error(`a module of ${wasm.length} bytes cannot have ${size}`);
  const module = new Uint8Array(size);
  module.set(wasm);
  const section = [0, ...longLength(1 + name.length + filling), name.length, ...name];
  module.set(section, wasm.length);
  // Noise, so that nothing on the way could make it smaller.
  let state = 1;
  for (let at = wasm.length + head; at < size; at += 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    module[at] = state >>> 24;
  }
  return module;
}

function longLength(value: number): number[] {
  return [0, 1, 2, 3, 4].map((at) => ((value >>> (7 * at)) & 0x7f) | (at < 4 ? 0x80 : 0));
}
