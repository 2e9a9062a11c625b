// What the JavaScript peers, and Pyodide, have in common: their options, the check of a peer, and
// the measuring. peer.py says what a peer gives and what is asked of it; here `execute` may also
// return a promise.
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';

const NO_SUCH_LANGUAGE = 3;
const SECONDS = 30;
export const MEMORY_BYTES = 128 * 1024 * 1024;

// A `require` that finds what build.sh installed, since these files stand elsewhere.
const folder = process.env.PEERS_DIR ?? '/tmp/language-peers';
export const installed = createRequire(join(folder, 'any.js'));

const CHECKS = {
  javascript: {
    about: `const names = ['JSON', 'RegExp', 'Map', 'Promise', 'Proxy', 'BigInt', 'Date'];
const year = /(?<year>\\d+)/.exec('in 2026').groups.year;
console.log(names.every((name) => name in globalThis), year, 2n ** 64n);`,
    told: /^true 2026 18446744073709551616$/,
    mark: "JSON.mark = 1; console.log('left')",
    find: "console.log('mark' in JSON, typeof JSON)",
    found: 'false object',
    endless: 'while (true) ;',
    hog: "const kept = []; while (true) kept.push(new Array(100000).fill('x'));",
  },
  python: {
    about: `import sys, json, re, hashlib, datetime, decimal, collections, asyncio
print(sys.implementation.name, '.'.join(map(str, sys.version_info[:3])))`,
    told: /^cpython 3\./,
    mark: "import json\njson.mark = 1\nprint('left')",
    find: "import json\nprint(hasattr(json, 'mark'), 'json' in globals())",
    found: 'False True',
    endless: 'while True: pass',
    hog: "kept = b'x' * 300_000_000\nprint(len(kept))",
  },
};

// Does what the command line asks for with a peer. Several programs at once are executed in as many
// threads as there are cores, in which this same program serves them.
export async function main({ name, language, execute }) {
  if (!isMainThread) return serveThread(execute);
  const options = parseOptions(language);
  if (options.language !== language) process.exit(NO_SUCH_LANGUAGE);
  const answer = options.what === 'check'
    ? await check(name, execute, CHECKS[language])
    : await measure(name, execute, await standardInput(), options);
  console.log(JSON.stringify(answer));
}

function parseOptions(language) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      language: { type: 'string', default: language },
      program: { type: 'string', default: 'stdin' },
      expect: { type: 'string' },
      calls: { type: 'string', default: '400' },
      longest: { type: 'string', default: '20' },
      clients: { type: 'string', default: '16' },
      seconds: { type: 'string', default: '4' },
    },
  });
  const what = positionals[0];
  if (!['check', 'measure'].includes(what)) throw new Error('say check or measure');
  const options = { ...values, what };
  for (const key of ['calls', 'longest', 'clients', 'seconds']) {
    options[key] = Number(values[key]);
    if (!(options[key] > 0)) throw new Error(`--${key} is a number above zero, not ${values[key]}`);
  }
  return options;
}

async function standardInput() {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

async function check(name, execute, programs) {
  const about = (await execute(programs.about, SECONDS)).trim();
  if (!programs.told.test(about)) throw new Error(`it is not the whole language: ${about}`);
  const left = (await execute(programs.mark, SECONDS)).trim();
  if (left !== 'left') throw new Error(`a program does not run: ${left}`);
  const found = (await execute(programs.find, SECONDS)).trim();
  if (found !== programs.found) throw new Error(`a program sees what another left: ${found}`);
  const begun = performance.now();
  const stopped = await isRefused(execute, programs.endless, 1);
  if (!stopped) throw new Error('an endless loop ended well');
  const stopped_after_s = Number(((performance.now() - begun) / 1e3).toFixed(2));
  const memory_denied = await isRefused(execute, programs.hog, SECONDS);
  return { peer: name, interpreter: about, fresh: true, stopped_after_s, memory_denied };
}

async function isRefused(execute, code, seconds) {
  try {
    await execute(code, seconds);
  } catch (failed) {
    console.error(String(failed.message ?? failed).trim().slice(-100));
    return true;
  }
  return false;
}

async function measure(name, execute, code, options) {
  const expected = (options.expect ?? await execute(code, SECONDS)).trim();
  if (!expected) throw new Error('the program writes nothing, so nobody sees whether it ran');
  const timed = async (execute) => {
    const begun = performance.now();
    const wrote = await execute(code, SECONDS);
    const took = performance.now() - begun;
    if (wrote.trim() !== expected) {
      throw new Error(`${JSON.stringify(wrote)} instead of ${JSON.stringify(expected)}`);
    }
    return took;
  };
  const { calls, longest } = options;
  await oneAtATime(() => timed(execute), calls / 20, longest / 10);
  const { took, processor } = await oneAtATime(() => timed(execute), calls, longest);
  const threads = startThreads(availableParallelism());
  const perSecond = await manyAtOnce(() => timed(threads.execute), options);
  await threads.stop();
  took.sort((one, other) => one - other);
  const round = (value) => Number(value.toFixed(3));
  return {
    peer: name,
    program: options.program,
    p50_ms: round(quantile(took, 50)),
    mean_ms: round(took.reduce((sum, one) => sum + one, 0) / took.length),
    p99_ms: round(quantile(took, 99)),
    per_second: round(perSecond),
    processor_ms: round(processor / took.length),
    calls: took.length,
  };
}

async function oneAtATime(timed, calls, longest) {
  const took = [];
  const before = process.cpuUsage();
  const deadline = performance.now() + longest * 1e3;
  while (took.length < calls && (took.length === 0 || performance.now() < deadline)) {
    took.push(await timed());
  }
  const { user, system } = process.cpuUsage(before);
  return { took, processor: (user + system) / 1e3 };
}

async function manyAtOnce(timed, { clients, seconds }) {
  // Threads that start are not part of what is measured.
  await Promise.all(Array.from({ length: availableParallelism() }, timed));
  const begun = performance.now();
  let ended = 0;
  await Promise.all(Array.from({ length: clients }, async () => {
    while (performance.now() < begun + seconds * 1e3) {
      await timed();
      ended += 1;
    }
  }));
  return ended / ((performance.now() - begun) / 1e3);
}

function quantile(ascending, percent) {
  return ascending[Math.floor((ascending.length - 1) * percent / 100)];
}

// Threads of this same program that execute what they are sent; a program waits for a free one.
function startThreads(count) {
  const free = [];
  const waiting = [];
  const start = () => new Worker(process.argv[1], { workerData: 'thread' });
  const workers = Array.from({ length: count }, start);
  const give = (worker) => (waiting.length ? waiting.shift()(worker) : free.push(worker));
  workers.forEach(give);
  const execute = async (code, seconds) => {
    const worker = free.pop() ?? await new Promise((resolve) => waiting.push(resolve));
    const answer = await new Promise((resolve, reject) => {
      worker.removeAllListeners('error');
      worker.once('error', reject);
      worker.once('message', resolve);
      worker.postMessage({ code, seconds });
    });
    give(worker);
    if (answer.failed !== undefined) throw new Error(answer.failed);
    return answer.wrote;
  };
  return { execute, stop: () => Promise.all(workers.map((worker) => worker.terminate())) };
}

function serveThread(execute) {
  if (workerData !== 'thread') return;
  parentPort.on('message', async ({ code, seconds }) => {
    try {
      parentPort.postMessage({ wrote: await execute(code, seconds) });
    } catch (failed) {
      parentPort.postMessage({ failed: String(failed.message ?? failed) });
    }
  });
}
