// Regular expressions in time that is linear in the text, by Pike's simulation of a nondeterministic finite automaton.
// A browser's own may take for ever on a pattern such as `(a+)+b`, cannot be interrupted, and text comes from guests.

import { type Assertion, type CharacterTest, PatternError, type RegexNode } from './regex_syntax.js';

/** The most instructions of a program. Each costs a moment for each character. */
const MAX_INSTRUCTIONS = 2_000;
/** The most ways through a pattern that the browser may try. */
const MAX_WAYS = 64;

/** A place that matches. */
export interface Match {
  readonly from: number;
  readonly to: number;
}

type Instruction =
  | { readonly kind: 'character'; readonly test: CharacterTest }
  | { readonly kind: 'assertion'; readonly assertion: Assertion }
  /** Goes on at the first, and if that leads nowhere at the second. */
  | { readonly kind: 'split'; first: number; second: number }
  | { readonly kind: 'jump'; to: number }
  | { readonly kind: 'match' };

/** A regular expression whose search cannot take long. */
export class LinearRegex {
  readonly #program: Instruction[] = [];
  /** Threads that are in the list of a step, by the step's number. */
  readonly #marks: Int32Array;
  #step = 0;
  /** How many instructions were executed so far. */
  steps = 0;

  /** Compiles a tree. Throws a `PatternError` where it is too large. */
  constructor(node: RegexNode) {
    this.#emit(node);
    this.#add({ kind: 'match' });
    this.#marks = new Int32Array(this.#program.length);
  }

  /** Finds the first match at or after a place: the one that the browser's own regular expressions would find. */
  find(text: string, from: number): Match | undefined {
    let threads = new Threads();
    let next = new Threads();
    let found: Match | undefined;
    for (let at = from; ; ) {
      if (found === undefined) {
        // Of all threads, the one that begins here comes last.
        if (threads.length === 0) this.#step += 1;
        this.#follow(threads, 0, at, text, at);
      }
      if (threads.length === 0 && found !== undefined) return found;
      const code = text.codePointAt(at);
      const after = at + (code === undefined ? 0 : code > 0xffff ? 2 : 1);
      this.#step += 1;
      next.clear();
      this.steps += threads.length;
      for (let i = 0; i < threads.length; i++) {
        const place = threads.places[i]!;
        const instruction = this.#program[place]!;
        if (instruction.kind === 'match') {
          found = { from: threads.starts[i]!, to: at };
          break;
        }
        if (code !== undefined && instruction.kind === 'character' && instruction.test(code)) {
          this.#follow(next, place + 1, threads.starts[i]!, text, after);
        }
      }
      if (code === undefined) return found;
      [threads, next] = [next, threads];
      at = after;
    }
  }

  /** Adds a thread at an instruction, or at those that it leads to without a character. */
  #follow(threads: Threads, place: number, start: number, text: string, at: number): void {
    const stack = [place];
    for (let here = stack.pop(); here !== undefined; here = stack.pop()) {
      if (this.#marks[here] === this.#step) continue;
      this.#marks[here] = this.#step;
      this.steps += 1;
      const instruction = this.#program[here]!;
      switch (instruction.kind) {
        case 'jump':
          stack.push(instruction.to);
          break;
        case 'split':
          stack.push(instruction.second, instruction.first);
          break;
        case 'assertion':
          if (holds(instruction.assertion, text, at)) stack.push(here + 1);
          break;
        case 'character':
        case 'match':
          threads.add(here, start);
          break;
      }
    }
  }

  #add(instruction: Instruction): number {
    if (this.#program.length >= MAX_INSTRUCTIONS) throw new PatternError('This pattern is too large');
    return this.#program.push(instruction) - 1;
  }

  #emit(node: RegexNode): void {
    switch (node.kind) {
      case 'character':
      case 'assertion':
        this.#add(node);
        break;
      case 'sequence':
        for (const item of node.items) this.#emit(item);
        break;
      case 'either':
        this.#emitEither(node.branches);
        break;
      case 'repeat':
        for (let i = 0; i < node.min; i++) this.#emit(node.item);
        if (node.max === Infinity) this.#emitOptional(node.item, node.isLazy, true);
        else this.#emitUpTo(node.item, node.max - node.min, node.isLazy);
        break;
    }
  }

  #emitEither(branches: readonly RegexNode[]): void {
    const jumps: Array<{ kind: 'jump'; to: number }> = [];
    branches.forEach((branch, i) => {
      const split = { kind: 'split' as const, first: 0, second: 0 };
      const isLast = i === branches.length - 1;
      if (!isLast) split.first = this.#add(split) + 1;
      this.#emit(branch);
      if (isLast) return;
      const jump = { kind: 'jump' as const, to: 0 };
      jumps.push(jump);
      split.second = this.#add(jump) + 1;
    });
    for (const jump of jumps) jump.to = this.#program.length;
  }

  #emitUpTo(item: RegexNode, times: number, isLazy: boolean): void {
    if (times > MAX_INSTRUCTIONS) throw new PatternError('This pattern is too large');
    for (let i = 0; i < times; i++) this.#emitOptional(item, isLazy, false);
  }

  #emitOptional(item: RegexNode, isLazy: boolean, repeats: boolean): void {
    const split = { kind: 'split' as const, first: 0, second: 0 };
    const begin = this.#add(split);
    this.#emit(item);
    if (repeats) this.#add({ kind: 'jump', to: begin });
    const [inside, after] = [begin + 1, this.#program.length];
    [split.first, split.second] = isLazy ? [after, inside] : [inside, after];
  }
}

/** The threads of a step, the most preferred one first. */
class Threads {
  readonly places: number[] = [];
  readonly starts: number[] = [];
  length = 0;

  add(place: number, start: number): void {
    this.places[this.length] = place;
    this.starts[this.length] = start;
    this.length += 1;
  }

  clear(): void {
    this.length = 0;
  }
}

function holds(assertion: Assertion, text: string, at: number): boolean {
  if (assertion === 'start') return at === 0;
  if (assertion === 'end') return at === text.length;
  const isBoundary = isWord(text.charCodeAt(at - 1)) !== isWord(text.charCodeAt(at));
  return isBoundary === (assertion === 'boundary');
}

function isWord(code: number): boolean {
  return (code >= 48 && code <= 57) || (code >= 65 && code <= 90) || code === 95 || (code >= 97 && code <= 122);
}

/** Tells whether the browser needs few tries for a pattern, whatever the text: it has no repetitions, and few branches. */
export function isHarmless(node: RegexNode): boolean {
  return waysThrough(node) <= MAX_WAYS;
}

function waysThrough(node: RegexNode): number {
  switch (node.kind) {
    case 'character':
    case 'assertion':
      return 1;
    case 'sequence':
      return node.items.reduce((product, it) => product * waysThrough(it), 1);
    case 'either':
      return node.branches.reduce((sum, it) => sum + waysThrough(it), 0);
    case 'repeat':
      return node.min === node.max && node.item.kind === 'character' && node.max <= MAX_WAYS ? 1 : Infinity;
  }
}

/** Finds text that every match has; empty where there is none. */
export function requiredText(node: RegexNode): string {
  const items = node.kind === 'sequence' ? node.items : [node];
  let longest = '';
  let text = '';
  for (const item of items) {
    text = item.kind === 'character' && item.literal !== undefined ? text + item.literal : '';
    if (text.length > longest.length) longest = text;
  }
  return longest;
}
