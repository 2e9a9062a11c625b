"""The peer pyeryx: CPython 3.14 of componentize-py in wasmtime, initialised when it was built.

One `Sandbox` is shared by all threads, since each `execute` of it gets an instance of its own, and
the library keeps instances ready that it makes in threads of its own. It keeps one unless told,
which is too few for 16 clients.
"""

import os

# Read when the library is imported.
os.environ.setdefault("ERYX_WARM_INSTANCES", "16")

import eryx  # noqa: E402

import peer  # noqa: E402

sandboxes = {}


def sandbox_of(seconds):
    """Returns the sandbox whose programs may take so many seconds."""
    if seconds not in sandboxes:
        limits = eryx.ResourceLimits(
            execution_timeout_ms=int(seconds * 1000), max_memory_bytes=peer.MEMORY_BYTES
        )
        sandboxes[seconds] = eryx.Sandbox(resource_limits=limits)
    return sandboxes[seconds]


def execute(code, seconds):
    return sandbox_of(seconds).execute(code).stdout.decode()


if __name__ == "__main__":
    peer.main("pyeryx", execute)
