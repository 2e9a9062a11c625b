// The peer quickjs-emscripten: QuickJS as WebAssembly in V8, with an instance of the module for
// each call. Its document shows runtimes in one instance, which share one memory and so are not
// fresh: PEERS_SHARE=1 measures them, for comparison.
import { MEMORY_BYTES, installed, main } from './peer.mjs';

const quickjs = installed('quickjs-emscripten');
const shared = process.env.PEERS_SHARE ? await quickjs.getQuickJS() : null;

async function execute(code, seconds) {
  const module = shared ?? await quickjs.newQuickJSWASMModule();
  const deadline = Date.now() + seconds * 1e3;
  const runtime = module.newRuntime({
    memoryLimitBytes: MEMORY_BYTES,
    interruptHandler: quickjs.shouldInterruptAfterDeadline(deadline),
  });
  const context = runtime.newContext();
  let wrote = '';
  try {
    const log = context.newFunction('log', (...values) => {
      wrote += `${values.map((value) => context.getString(value)).join(' ')}\n`;
    });
    const console = context.newObject();
    context.setProp(console, 'log', log);
    context.setProp(context.global, 'console', console);
    log.dispose();
    console.dispose();
    context.unwrapResult(context.evalCode(code)).dispose();
  } finally {
    context.dispose();
    runtime.dispose();
  }
  return wrote;
}

const name = shared ? 'quickjs-emscripten, one memory' : 'quickjs-emscripten';
await main({ name, language: 'javascript', execute });
