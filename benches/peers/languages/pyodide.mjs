// The peer Pyodide: CPython for Emscripten in V8, loaded anew in a thread of its own for each call,
// since one interpreter keeps what programs leave. A thread is no sandbox: a program reaches Node
// by `import js`. Time is limited by ending the thread, and memory is not limited.
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { installed, main } from './peer.mjs';

function execute(code, seconds) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: { code } });
    let timer;
    const end = (how) => {
      clearTimeout(timer);
      worker.terminate().then(how);
    };
    worker.once('error', (failed) => end(() => reject(failed)));
    worker.on('message', ({ loaded, wrote, failed }) => {
      if (loaded) {
        // The program's time begins here, not that of the interpreter.
        timer = setTimeout(() => end(() => reject(new Error('it took too long'))), seconds * 1e3);
      } else {
        end(() => (failed === undefined ? resolve(wrote) : reject(new Error(failed))));
      }
    });
  });
}

async function executeHere(code) {
  let wrote = '';
  try {
    const stdout = (line) => { wrote += `${line}\n`; };
    const pyodide = await installed('pyodide').loadPyodide({ stdout });
    parentPort.postMessage({ loaded: true });
    pyodide.runPython(code);
    return { wrote };
  } catch (failed) {
    return { failed: String(failed.message ?? failed) };
  }
}

if (isMainThread || workerData === 'thread') {
  await main({ name: 'pyodide', language: 'python', execute });
} else {
  parentPort.postMessage(await executeHere(workerData.code));
}
