"""What the Python peers have in common: their options, the check of a peer, and the measuring.

A peer is a library, not a server, so its figures have no wire, no codec and no queue in them. It
gives one function, `execute(code, seconds)`, which executes a program in memory that no other
program used, with a limit of time and one of memory, and returns what it wrote to standard output.
It raises where the program fails.

    PEER check                   says whether the peer is what this comparison is about
    PEER measure --program NAME  measures the program that comes on standard input

Both print one line of JSON. Exit code 3 means that the peer does not have the language.
"""

import argparse
import json
import os
import sys
import threading
import time

NO_SUCH_LANGUAGE = 3
# The memory that one program may take: enough for each interpreter, and less than the hog asks for.
MEMORY_BYTES = 128 * 1024 * 1024
# The time that one program may take, which is the daemon's default too.
SECONDS = 30.0

LEAVE_A_MARK = "import json\njson.mark = 1\nprint('left')\n"
FIND_THE_MARK = "import json\nprint(hasattr(json, 'mark'), 'json' in globals())\n"
FULL_CPYTHON = """
import sys, json, re, hashlib, datetime, decimal, collections, asyncio, unittest
print(sys.implementation.name, '.'.join(map(str, sys.version_info[:3])),
      hashlib.sha256(json.dumps([1]).encode()).hexdigest()[:8])
"""
ENDLESS = "while True: pass\n"
HOG = "kept = b'x' * 300_000_000\nprint(len(kept))\n"


def main(name, execute):
    """Does what the command line asks for with a peer."""
    options = parse_options()
    if options.language != "python":
        sys.exit(NO_SUCH_LANGUAGE)
    if options.what == "check":
        print(json.dumps(check(name, execute)))
    else:
        print(json.dumps(measure(name, execute, sys.stdin.read(), options)))


def parse_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["check", "measure"])
    parser.add_argument("--language", default="python")
    parser.add_argument("--program", default="stdin", help="its name, for the answer")
    parser.add_argument("--expect", help="what the program has to write, but for blanks at the end")
    parser.add_argument("--calls", type=int, default=400, help="how many, one after the other")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds for them, at most")
    parser.add_argument("--clients", type=int, default=16, help="how many at once, after that")
    parser.add_argument("--seconds", type=float, default=4.0, help="for how long")
    return parser.parse_args()


def check(name, execute):
    """Says what a peer is: whose CPython, whether memory is fresh, and which limits hold.

    Raises where the memory is not fresh or the library is not there: then the peer is no peer.
    """
    version = execute(FULL_CPYTHON, SECONDS).strip()
    assert version.startswith("cpython 3."), f"it is no CPython: {version}"
    assert execute(LEAVE_A_MARK, SECONDS).strip() == "left", "a program does not run"
    found = execute(FIND_THE_MARK, SECONDS).strip()
    assert found == "False True", f"a program sees what another one left: {found}"
    return {
        "peer": name,
        "interpreter": version,
        "fresh": True,
        "stopped_after_s": stopped_after(execute),
        "memory_denied": is_refused(execute, HOG),
    }


def stopped_after(execute):
    """Returns how long an endless loop ran that may take one second."""
    begun = time.perf_counter()
    if not is_refused(execute, ENDLESS, 1.0):
        raise AssertionError("an endless loop ended well")
    return round(time.perf_counter() - begun, 2)


def is_refused(execute, code, seconds=SECONDS):
    try:
        execute(code, seconds)
    except Exception as failed:
        print(f"{type(failed).__name__}: {str(failed).strip()[-100:]!r}", file=sys.stderr)
        return True
    return False


def measure(name, execute, code, options):
    """Measures a program: one call after the other, then many at once."""
    expected = execute(code, SECONDS).strip() if options.expect is None else options.expect.strip()
    assert expected, "the program writes nothing, so nobody sees whether it ran"

    def timed():
        begun = time.perf_counter()
        wrote = execute(code, SECONDS)
        took = time.perf_counter() - begun
        assert wrote.strip() == expected, f"{wrote!r} instead of {expected!r}"
        return took

    one_at_a_time(timed, options.calls // 20, options.longest / 10)
    took, processor = one_at_a_time(timed, options.calls, options.longest)
    per_second = many_at_once(timed, options.clients, options.seconds)
    took.sort()
    return {
        "peer": name,
        "program": options.program,
        "p50_ms": round(quantile(took, 50) * 1e3, 3),
        "mean_ms": round(sum(took) / len(took) * 1e3, 3),
        "p99_ms": round(quantile(took, 99) * 1e3, 3),
        "per_second": round(per_second, 1),
        "processor_ms": round(processor / len(took) * 1e3, 3),
        "calls": len(took),
    }


def one_at_a_time(timed, calls, longest):
    """Calls until there was enough of calls or of time; returns each time, and processor time."""
    took, before, deadline = [], processor_time(), time.perf_counter() + longest
    while len(took) < max(calls, 1) and (not took or time.perf_counter() < deadline):
        took.append(timed())
    return took, processor_time() - before


def many_at_once(timed, clients, seconds):
    """Returns how many calls a second ended, from the first one's begin to the last one's end."""
    begun = time.perf_counter()
    ended, failed = [], []

    def client():
        try:
            while time.perf_counter() < begun + seconds:
                ended.append(timed())
        except BaseException as error:  # Or the thread's failure would only be fewer calls.
            failed.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return len(ended) / (time.perf_counter() - begun)


def processor_time():
    """Returns the processor time of this process and of its children that ended, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def quantile(ascending, percent):
    return ascending[(len(ascending) - 1) * percent // 100]
