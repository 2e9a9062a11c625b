// Errors as Node shows them: a stack of the program's own frames, each as "at NAME (FILE:LINE:COLUMN)".

// The files of the runner and of the bindings around it, whose frames are left out.
const OWN = /^(?:runner|bindings|streams|errors|events|inspect|console|packages|process|timers|files|modules|path|buffer)\.js$|initializer\.js$/;

const FRAME = /^(?:(.*?)@)?(.*?):(\d+):(\d+)$/;

const native = Object.getOwnPropertyDescriptor(Error.prototype, 'stack');
const { apply } = Reflect;
const { toString } = Error.prototype;
const NativeError = Error;
const NativeSyntaxError = SyntaxError;

// Returns the frames of an error that are the program's: name, file, line and column of each.
export function framesOf(error) {
  let text;
  try {
    text = native.get.call(error);
  } catch {
    text = undefined;
  }
  const frames = [];
  for (const line of String(text ?? '').split('\n')) {
    const found = FRAME.exec(line);
    if (found === null || OWN.test(found[2]) || found[2].includes(' > ') || found[2] === 'self-hosted') continue;
    const name = (found[1] ?? '').replace(/^async\*/, 'async ').replace(/\/<$/, '').replace(/[/<]+$/, '');
    frames.push({ name: name.trim(), file: found[2], line: Number(found[3]), column: Number(found[4]) });
  }
  return frames;
}

// Returns whether an error says that the text of a program could not be parsed, so that nothing of it was executed. A
// SyntaxError that a program throws has frames of the program.
export function isOfParser(error) {
  try {
    const text = native.get.call(error);
    if (!(error instanceof NativeSyntaxError) || typeof text !== 'string' || error.place !== undefined) return false;
    return text.split('\n').every((line) => line === '' || OWN.test(FRAME.exec(line)?.[2] ?? ''));
  } catch {
    return false;
  }
}

// Returns an error's name and message, and its frames.
function stackOf(error) {
  let head;
  try {
    head = String(Error.prototype.toString.call(error));
  } catch {
    head = 'Error';
  }
  return head + framesOf(error).map(shown).join('');
}

function shown({ name, file, line, column }) {
  const place = `${file}:${line}:${column}`;
  return name === '' || name === 'async' ? `\n    at ${name === '' ? '' : 'async '}${place}` : `\n    at ${name} (${place})`;
}

// Makes `error.stack` what programs that were written for Node expect.
export function installStacks() {
  Object.defineProperty(Error.prototype, 'stack', {
    configurable: true,
    get() {
      return native.get.call(this) === undefined ? undefined : stackOf(this);
    },
    set(value) {
      Object.defineProperty(this, 'stack', { value, writable: true, configurable: true, enumerable: false });
    },
  });
  // What the engine throws where recursion is too deep is a RangeError for programs.
  Object.setPrototypeOf(InternalError.prototype, RangeError.prototype);
  Object.defineProperty(InternalError.prototype, 'name', { value: 'RangeError', writable: true, configurable: true });
  InternalError.prototype.constructor = RangeError;
  Error.stackTraceLimit = 10;
  Error.captureStackTrace = (target) => {
    const error = new Error();
    const frames = framesOf(error).map(shown).join('');
    const value = `${Error.prototype.toString.call(target)}${frames}`;
    Object.defineProperty(target, 'stack', { value, writable: true, configurable: true, enumerable: false });
  };
}

// Returns what standard error is told of a value that nobody caught, given the sources by their file names.
export function describeUncaught(error, sources, inspect) {
  try {
    return describe(error, sources, inspect);
  } catch {
    // The program has replaced what that calls, or the error itself throws. Even its name may.
  }
  try {
    return `Uncaught ${apply(toString, error, [])}\n`;
  } catch {
    return 'Uncaught error, which cannot be shown\n';
  }
}

function describe(error, sources, inspect) {
  if (!(error instanceof NativeError)) return `Uncaught ${inspect(error)}\n`;
  const isSyntax = error instanceof NativeSyntaxError && typeof error.lineNumber === 'number' && error.place !== undefined;
  const place = isSyntax ? error.place : framesOf(error)[0];
  const source = place && sources.get(place.file)?.split('\n')[place.line - 1];
  const start = source === undefined
    ? ''
    : `${place.file}:${place.line}\n${source}\n${source.slice(0, place.column - 1).replace(/[^\t]/g, ' ')}^\n\n`;
  return `${start}${inspect(error)}\n`;
}
