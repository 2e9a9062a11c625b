// The peer isolated-vm: V8 itself, with a fresh isolate and context for each call, from a snapshot
// that has `console.log`. It runs in this process, so a bug of V8 is a way out of it.
//
// The synchronous calls are used, in as many threads as there are cores: the asynchronous ones take
// longer here, and gave about 640 calls a second on two cores where these gave 1,000.
import { MEMORY_BYTES, installed, main } from './peer.mjs';

const ivm = installed('isolated-vm');
const CONSOLE = "globalThis.console = { log: (...values) => write(values.map(String).join(' ')) };";
const snapshot = ivm.Isolate.createSnapshot([{ code: CONSOLE }]);

function execute(code, seconds) {
  const isolate = new ivm.Isolate({ memoryLimit: MEMORY_BYTES / 2 ** 20, snapshot });
  let wrote = '';
  try {
    const context = isolate.createContextSync();
    context.global.setSync('write', new ivm.Callback((line) => { wrote += `${line}\n`; }));
    isolate.compileScriptSync(code).runSync(context, { timeout: seconds * 1e3 });
  } finally {
    // A script that took too much memory has disposed of it already.
    if (!isolate.isDisposed) isolate.dispose();
  }
  return wrote;
}

await main({ name: 'isolated-vm', language: 'javascript', execute });
