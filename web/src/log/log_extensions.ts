// What CodeMirror shows of lines besides their text. All of it is made for the lines that are in sight.

import { type Extension, type Range, StateEffect } from '@codemirror/state';
import {
  Decoration,
  type DecorationSet,
  type EditorView,
  gutter,
  GutterMarker,
  ViewPlugin,
  type ViewUpdate,
} from '@codemirror/view';

import type { AnsiStyle } from '../model/ansi.js';
import { cssOfStyle } from '../model/ansi_color.js';
import { formatClock } from '../model/clock.js';
import type { Match } from '../model/linear_regex.js';
import type { LogLine } from '../model/line_assembler.js';
import type { Matcher } from '../model/log_search.js';
import { TAG_COLORS } from './log_theme.js';

/** The most styles and matches that are shown at once: each is an element, and a line may have thousands of them. */
const MAX_SPANS_IN_SIGHT = 8_000;
const MAX_MATCHES_IN_SIGHT = 1_000;

/** A run, where those of several are shown. */
export interface LogTag {
  readonly name: string;
}

/** What the lines in sight are shown by. The document has these lines, and an empty one at the end. */
export interface LogAppearance {
  lines: readonly LogLine[];
  /** The line that is linked to. */
  marked: LogLine | undefined;
  matcher: Matcher | undefined;
  /** The match that one went to: its line, and which of the line's matches. */
  current: { readonly line: LogLine; readonly match: number } | undefined;
  tags: readonly LogTag[];
}

/** Says that the appearance is another than before. */
export const appearanceChanged = StateEffect.define<null>();

function isChanged(update: ViewUpdate): boolean {
  return update.transactions.some((it) => it.effects.some((effect) => effect.is(appearanceChanged)));
}

const styleMarks = new WeakMap<AnsiStyle, Decoration>();

function markOf(style: AnsiStyle): Decoration {
  let mark = styleMarks.get(style);
  if (mark === undefined) {
    // CodeMirror sets it through CSSOM, which the page's policy allows.
    mark = Decoration.mark({ attributes: { style: cssOfStyle(style) } });
    styleMarks.set(style, mark);
  }
  return mark;
}

/** Calls back for each line in sight, with the parts of it that are. */
function forLinesInSight(
  view: EditorView,
  lines: readonly LogLine[],
  show: (line: LogLine, begin: number, from: number, to: number, isFirstPart: boolean) => void,
): void {
  let last = -1;
  for (const { from, to } of view.visibleRanges) {
    for (let at = from; at <= to; ) {
      const line = view.state.doc.lineAt(at);
      const log = lines[line.number - 1];
      if (log !== undefined) {
        const isFirstPart = line.number !== last;
        show(log, line.from, Math.max(from, line.from), Math.min(to, line.to), isFirstPart);
        last = line.number;
      }
      at = line.to + 1;
    }
  }
}

function lineDecorations(view: EditorView, { lines, marked }: LogAppearance): DecorationSet {
  const ranges: Range<Decoration>[] = [];
  let spans = 0;
  const here = view.hasFocus ? view.state.doc.lineAt(view.state.selection.main.head).from : -1;
  forLinesInSight(view, lines, (line, begin, from, to, isFirstPart) => {
    if (isFirstPart) {
      const names = [
        line.source === 'stdout' ? '' : `cm-${line.source}`,
        line === marked ? 'cm-marked' : '',
        begin === here ? 'cm-here' : '',
        line.goesOn ? 'cm-goes-on' : '',
      ].filter((it) => it !== '');
      if (names.length > 0) ranges.push(Decoration.line({ class: names.join(' ') }).range(begin));
    }
    for (const span of line.spans) {
      // A line that is held back by a pause may be longer than what is shown of it.
      const [first, last] = [Math.max(begin + span.from, from), Math.min(begin + span.to, to)];
      if (first < last && ++spans <= MAX_SPANS_IN_SIGHT) ranges.push(markOf(span.style).range(first, last));
    }
  });
  return Decoration.set(ranges, true);
}

const matchMark = Decoration.mark({ class: 'cm-match' });
const currentMark = Decoration.mark({ class: 'cm-match cm-current' });

function matchDecorations(view: EditorView, appearance: LogAppearance): DecorationSet {
  const { lines, matcher, current } = appearance;
  if (matcher === undefined) return Decoration.none;
  const ranges: Range<Decoration>[] = [];
  let matches = 0;
  forLinesInSight(view, lines, (line, begin, from, to) => {
    matchesOf(matcher, line.text).forEach((match, i) => {
      const [first, last] = [Math.max(begin + match.from, from), Math.min(begin + match.to, to)];
      if (first >= last) return;
      const isCurrent = current?.line === line && current.match === i;
      if (isCurrent) ranges.push(currentMark.range(first, last));
      else if (++matches <= MAX_MATCHES_IN_SIGHT) ranges.push(matchMark.range(first, last));
    });
  });
  return Decoration.set(ranges, true);
}

const knownMatches = new WeakMap<Matcher, Map<string, readonly Match[]>>();

/** Finds the matches of lines in sight, which are asked for again with each line that comes. */
function matchesOf(matcher: Matcher, text: string): readonly Match[] {
  let known = knownMatches.get(matcher);
  if (known === undefined || known.size > 500) {
    known = new Map();
    knownMatches.set(matcher, known);
  }
  const matches = known.get(text) ?? matcher(text);
  known.set(text, matches);
  return matches;
}

/** Shows streams, styles and matches. */
export function decorations(appearance: LogAppearance): Extension {
  const plugin = (decorate: (view: EditorView, appearance: LogAppearance) => DecorationSet) =>
    ViewPlugin.fromClass(
      class {
        decorations: DecorationSet;

        constructor(view: EditorView) {
          this.decorations = decorate(view, appearance);
        }

        update(update: ViewUpdate): void {
          const { docChanged, viewportChanged, selectionSet, focusChanged } = update;
          if (docChanged || viewportChanged || selectionSet || focusChanged || isChanged(update)) {
            this.decorations = decorate(update.view, appearance);
          }
        }
      },
      { decorations: (it) => it.decorations },
    );
  return [plugin(lineDecorations), plugin(matchDecorations)];
}

/** Text in a gutter. */
class TextMarker extends GutterMarker {
  constructor(
    readonly text: string,
    override readonly elementClass: string,
  ) {
    super();
  }

  override eq(other: TextMarker): boolean {
    return other.text === this.text && other.elementClass === this.elementClass;
  }

  override toDOM(): Node {
    return document.createTextNode(this.text);
  }
}

/** Which gutters there are. */
export interface GutterChoice {
  readonly numbers: boolean;
  readonly times: boolean;
  /** Names of runs. */
  readonly tags: boolean;
}

/** Shows what is beside the lines. `chosen` is called with the line whose gutter is pressed. */
export function gutters(appearance: LogAppearance, choice: GutterChoice, chosen: (line: LogLine) => void): Extension {
  const column = (
    name: string,
    textOf: (line: LogLine) => string,
    classOf: (line: LogLine) => string,
    widest: () => string,
  ) =>
    gutter({
      class: `cm-${name}`,
      lineMarker(view, block) {
        const line = appearance.lines[view.state.doc.lineAt(block.from).number - 1];
        const text = line === undefined ? '' : textOf(line);
        if (line === undefined || text === '') return null;
        return new TextMarker(text, line === appearance.marked ? 'cm-marked' : classOf(line));
      },
      lineMarkerChange: isChanged,
      initialSpacer: () => new TextMarker(widest(), ''),
      updateSpacer: (spacer) => {
        const text = widest();
        return (spacer as TextMarker).text === text ? spacer : new TextMarker(text, '');
      },
      domEventHandlers: {
        click(view, block) {
          const line = appearance.lines[view.state.doc.lineAt(block.from).number - 1];
          if (line !== undefined && line.source !== 'note') chosen(line);
          return true;
        },
      },
    });
  const numberOf = (line: LogLine) => (line.source === 'note' ? '' : String(line.number));
  const plain = () => '';
  return [
    choice.numbers ? column('numbers', numberOf, plain, () => String(appearance.lines.at(-1)?.number ?? 1)) : [],
    choice.times ? column('times', (it) => formatClock(it.time), plain, () => formatClock(0)) : [],
    choice.tags
      ? column(
          'tags',
          (it) => appearance.tags[it.tag ?? -1]?.name ?? '',
          (it) => (it.tag === undefined ? '' : `cm-tag-${it.tag % TAG_COLORS.length}`),
          () => appearance.tags.reduce((widest, it) => (it.name.length > widest.length ? it.name : widest), ''),
        )
      : [],
    column('streams', (it) => (it.source === 'stderr' ? 'err' : ''), () => 'cm-err', () => 'err'),
  ];
}
