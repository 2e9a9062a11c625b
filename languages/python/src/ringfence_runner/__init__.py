"""The runner of Python programs, which docs/languages.md describes: it reads one program and executes it.

The module is imported when the component is built, and the memory that it leaves is what every run begins with. What
can be done once is done here, outside of functions. What must differ from run to run, such as the state of `random`,
is renewed when a program starts.
"""

# ruff: noqa: E402
from wit_world import exports
from wit_world.imports import exit as wasi_exit

from . import baked

# All modules below come from memory already.
baked.install()

import _io
import _random
import atexit
import builtins
import errno
import functools
import gc
import io
import json
import linecache
import opcode
import os
import random
import re
import stat
import sys
import time
import types

from . import baked_imports, event_loop, holes, immortal

# The functions below look names up in a copy of `builtins`, which a program that replaces names there leaves alone.
__builtins__ = dict(vars(builtins))

# The most bytes that a header may have, which has the program in it.
MAX_HEADER = 64 << 20

# The exit code where the header is malformed, and no program was started.
MALFORMED_HEADER = 64

# The exit code where a program of a session could not begin, for what those before it have left.
UNPREPARED = 70

# The modules that are imported when the component is built. All others come from memory when a program imports them.
IMPORTED = """
abc argparse array ast asyncio base64 binascii bisect calendar cmath codecs collections collections.abc concurrent
concurrent.futures configparser contextlib contextvars copy csv dataclasses datetime decimal difflib enum errno
fractions functools glob hashlib heapq hmac html importlib.machinery importlib.resources importlib.util inspect io
itertools json keyword linecache locale logging math numbers operator os.path pathlib pickle platform pprint queue
random re secrets shlex shutil signal stat statistics string struct tempfile textwrap threading time timeit tomllib
traceback types typing unicodedata urllib.parse uuid warnings weakref zlib zoneinfo
""".split()


class Run(exports.Run):
    """The export `wasi:cli/run`."""

    def run(self):
        """Reads one program, executes it, and leaves with its exit code."""
        try:
            header = Header(read_header())
            header.check()
            header.apply()
        except MalformedHeader as error:
            os.write(2, f'the runner of Python was given a malformed header: {error}\n'.encode())
            leave(MALFORMED_HEADER)
        code = 1
        try:
            # Not by `execute`, which would be one more level of calls for a program to notice.
            code = conclude(run_program(header, MAIN.__dict__))
        finally:
            # Also where the program has broken what the lines above rely on.
            leave(code)


class Session(exports.Session):
    """The export `ringfence:runner/session`: one program after the other in one interpreter."""

    def execute(self):
        """Reads one program, executes it with what those before it have left, and returns its exit code."""
        global EXECUTED, DESCRIPTORS
        try:
            header = Header(read_header())
            header.check()
            header.apply(is_first=EXECUTED == 0)
            EXECUTED += 1
            if EXECUTED == 1:
                DESCRIPTORS = identify_descriptors()
            else:
                header.begin_next()
        except MalformedHeader as error:
            WRITE(2, f'the runner of Python was given a malformed header: {error}\n'.encode())
            leave(MALFORMED_HEADER)
        except BaseException as error:
            # Programs before it may have replaced whatever the lines above rely on.
            try:
                tell_unprepared(error)
            finally:
                leave(UNPREPARED)
        code = run_program(header, MAIN.__dict__)
        try:
            flush_files()
        except BaseException:
            pass
        end = flush(code)
        if end != code or identify_descriptors() != DESCRIPTORS:
            # A later program could not be read, or nothing that it writes would arrive.
            leave(end)
        return end & 0xFF


class MalformedHeader(Exception):
    """What is wrong with a header."""


class Header:
    """The header of docs/languages.md: the program, and what it is started with."""

    def __init__(self, fields):
        if type(fields) is not dict:
            raise MalformedHeader(f'it is {kind(fields)}, and has to be an object')
        self.protocol = fields.get('protocol')
        self.program = fields.get('program')
        self.file = self.source_name = fields.get('file', 'main.py')
        self.args = fields.get('args', [])
        self.env = fields.get('env', {})
        self.options = fields.get('options', {})

    def check(self):
        """Refuses what is not as the protocol has it."""
        if self.protocol != 1:
            raise MalformedHeader(f'"protocol" is {json.dumps(self.protocol)}, and this runner knows 1')
        if type(self.file) is not str or not self.file or '\0' in self.file:
            raise MalformedHeader('"file" has to be a text that is not empty and has no NUL')
        if self.program is None:
            if not self.file.startswith('/'):
                raise MalformedHeader('"program" is missing, and "file" is no absolute path to read it from')
        elif type(self.program) is not str:
            raise MalformedHeader(f'"program" is {kind(self.program)}, and has to be a text')
        if type(self.args) is not list:
            raise MalformedHeader(f'"args" is {kind(self.args)}, and has to be an array of texts')
        for arg in self.args:
            if type(arg) is not str or '\0' in arg:
                raise MalformedHeader(f'"args" has {json.dumps(arg)}; an argument is a text without NUL')
        if type(self.env) is not dict:
            raise MalformedHeader(f'"env" is {kind(self.env)}, and has to be an object of texts')
        for key, value in self.env.items():
            if type(value) is not str:
                raise MalformedHeader(f'"env" has {kind(value)} for {json.dumps(key)}, and has to have a text')
            if not key or '=' in key or '\0' in key or '\0' in value:
                raise MalformedHeader(f'"env" has the key {json.dumps(key)}; keys are not empty, have no "=" and no NUL')
        if type(self.options) is not dict:
            raise MalformedHeader(f'"options" is {kind(self.options)}, and has to be an object')

    def apply(self, is_first=True):
        """Gives the process the arguments and variables of this program, and the first one fresh randomness."""
        set_list('argv', [self.file, *self.args])
        set_list('orig_argv', ['python3', self.file, *self.args])
        if not is_first:
            os.environ.update(self.env)
            return
        folder = self.file.rpartition('/')[0]
        sys.path[:] = [folder if folder.startswith('/') else '/' + folder]
        # The host sets PWD where there are files; a program gets the variables of the header and no others.
        for key in os.environ.keys() - self.env.keys():
            del os.environ[key]
        for key, value in self.env.items():
            os.environ[key] = value
        for renew in RENEWALS:
            renew()
        if self.options:
            if self.options.get('deterministic') is True:
                random.seed(0)
            if self.options.get('unbuffered') is True:
                STDOUT.reconfigure(line_buffering=True)

    def begin_next(self):
        """Makes ready for a program that is not the first of its session."""
        # Tracebacks may show functions of programs before it, which have the same name of file.
        self.source_name = f'{self.file}[{EXECUTED}]'
        # What the program before it has not read is not this one's.
        given = vars(sys).get('stdin')
        is_own = given is STDIN
        open_stdin()
        if not is_own:
            sys.stdin = given


def set_list(name, values):
    """Sets a list of `sys`: the one that is there, which others may hold, unless a program has left something else."""
    there = vars(sys).get(name)
    if type(there) is list:
        there[:] = values
    else:
        setattr(sys, name, values)


def tell_unprepared(error):
    """Tells that a program of a session could not begin, for what those before it have left."""
    text = f'the runner of Python cannot begin this program, for what others have left in the session: {error!r}\n'
    WRITE(2, text.encode(errors='backslashreplace'))


def identify_descriptors():
    """Returns what tells the descriptors of the standard streams from others that have their numbers."""
    return [identify(0), identify(1), identify(2)]


def identify(descriptor):
    """Returns what tells an open descriptor from others, or the number of the error where there is none."""
    try:
        about = FSTAT(descriptor)
    except OSError as error:
        return error.errno
    return FILE_TYPE(about.st_mode), about.st_dev, about.st_ino


def kind(value):
    """Returns how JSON calls a value."""
    names = {dict: 'an object', list: 'an array', str: 'a text', bool: 'a boolean', type(None): 'null'}
    return names.get(type(value), 'a number')


def read_header():
    """Reads the header and nothing after it, since the rest of the input is the program's."""
    size = int.from_bytes(read_exactly(4), 'little')
    if size > MAX_HEADER:
        raise MalformedHeader(f'its length is {size} bytes, and {MAX_HEADER} is the most')
    try:
        text = read_exactly(size).decode()
        fields, end = SCAN(text, 0)
        if end != len(text):
            raise MalformedHeader(f'there is more than one value in it: the first ends after {end} characters')
        return fields
    except ValueError as error:
        raise MalformedHeader(f'it is no JSON in UTF-8: {error}') from None
    except StopIteration as error:
        raise MalformedHeader(f'it is no JSON: there is no value at character {error.value}') from None


def read_exactly(count):
    """Reads from the descriptor itself: a stream would read ahead."""
    data = READ(0, count)
    while len(data) < count:
        piece = READ(0, count - len(data))
        if not piece:
            raise MalformedHeader(f'the input ends {count - len(data)} bytes before the header does')
        data += piece
    return data


def execute(header):
    """Executes a program as `__main__`, and returns its exit code."""
    return conclude(run_program(header, MAIN.__dict__))


def conclude(code):
    """Ends a program that has this exit code, whatever it has left behind, and returns the code that it has then."""
    try:
        finish(MAIN.__dict__)
    except BaseException:
        # As where finalisers fail, what is left is flushed.
        pass
    return flush(code)


def run_program(header, variables):
    """Executes a program in these variables, tells what ended it, and returns its exit code."""
    code, failure = 0, None
    try:
        variables['__file__'] = header.file
        source = header.program
        if source is None:
            source = read_program(header.file)
        else:
            linecache.cache[header.source_name] = (functools.partial(str, source),)
        exec(compile(source, header.source_name, 'exec', dont_inherit=True), variables)
    except BaseException as error:
        failure = error
    if RECURSION_LIMIT() < ROOM_TO_END:
        SET_RECURSION_LIMIT(ROOM_TO_END)
    # The error is no longer handled here, so one of a hook does not have it for its context.
    if failure is not None:
        code = 1
        try:
            code = report(failure)
        except BaseException:
            tell('The error that ended the program cannot be shown.\n')
    return code


def read_program(file):
    """Returns the bytes of a program that lies in a file, or says that it cannot be read and ends with code 2."""
    try:
        return baked.read_file(file)
    except OSError as error:
        sys.stderr.write(f"python3: can't open file {file!r}: [Errno {error.errno}] {error.strerror}\n")
        raise SystemExit(2) from None


def report(error):
    """Tells what ended the program as CPython does, and returns the exit code.

    The types decide, and never what an object says of itself: a program may have made its classes lie.
    """
    kind = type(error)
    if issubclass(kind, SystemExit):
        return exit_code(error)
    trace = TRACEBACK(error)
    sys.last_exc = sys.last_value = error
    sys.last_type, sys.last_traceback = kind, trace
    hook = getattr(sys, 'excepthook', None)
    if hook is None and not hasattr(sys, 'excepthook'):
        tell('sys.excepthook is missing, printing exception\n')
        hook = SHOW
    try:
        hook(kind, error, trace)
    except SystemExit as end:
        return exit_code(end)
    except BaseException as second:
        tell('Error in sys.excepthook:\n')
        SHOW(type(second), second, TRACEBACK(second))
        tell('\nOriginal exception was:\n')
        SHOW(kind, error, trace)
    return 130 if issubclass(kind, KeyboardInterrupt) else 1


def exit_code(error):
    """Returns the exit code of a SystemExit, and prints its argument where that is none."""
    try:
        code = error.code
    except BaseException:
        code = error
    if code is None:
        return 0
    if issubclass(type(code), int):
        code = TO_INT(code)
        return code & 0xFF if -1 << 31 <= code < 1 << 31 else 0xFF
    try:
        text = str(code)
    except BaseException:
        text = ''
    tell(f'{text}\n')
    return 1


def finish(variables):
    """Ends the program as CPython does: exit functions, then finalisers and open files.

    Other objects are left as they are, since the memory is dropped with them. Finalisers are those of objects that
    global variables hold. A file is also found where another object holds it.
    """
    RUN_EXIT_FUNCTIONS()
    for name in [name for name, value in variables.items() if hasattr(type(value), '__del__')]:
        variables[name] = None
    flush_files()


def flush_files():
    """Writes what open files still hold."""
    # Each file refers to its type.
    if COUNT_REFERENCES(FILE) > FILES:
        for file in [file for file in LIST_OBJECTS() if issubclass(type(file), STREAM)]:
            try:
                file.flush()
            except BaseException:
                pass


def flush(code):
    """Writes what the standard streams still hold. Where they cannot be written, the code is 120, as CPython has it."""
    out, err = getattr(sys, 'stdout', None), getattr(sys, 'stderr', None)
    if out is not None and not is_closed(out):
        try:
            out.flush()
        except BaseException as error:
            code = 120
            tell('Exception ignored while flushing sys.stdout:\n')
            SHOW(type(error), error, TRACEBACK(error))
    if out is not STDOUT or code == 120:
        for stream in STDOUT, STDOUT_BUFFER:
            try:
                stream.flush()
            except BaseException:
                # The program has closed it, or taken its buffer.
                pass
    if err is not None and not is_closed(err):
        try:
            err.flush()
        except BaseException:
            code = 120
    return code


def is_closed(stream):
    """Tells whether a stream says that it is closed. One that cannot say it is open."""
    try:
        return bool(stream.closed)
    except BaseException:
        return False


def tell(text):
    """Writes a text to standard error: by the stream that the program has left there, or else by its descriptor."""
    try:
        sys.stderr.write(text)
    except BaseException:
        try:
            WRITE(2, text.encode(errors='backslashreplace'))
        except BaseException:
            # Nobody is left to tell.
            pass


def leave(code):
    """Ends the run with an exit code, and does not return. The memory is dropped as it is."""
    EXIT(code & 0xFF)


def hide(function):
    """Keeps the frames of a function out of tracebacks, of the stacks that a program looks at, and of its tracers.

    CPython leaves a frame out that has not come to its instruction RESUME. Here it never comes to it.
    """
    code = function.__code__
    resume, nothing = bytes([opcode.opmap['RESUME'], 0]), bytes([opcode.opmap['NOP'], 0])
    if not code.co_code.startswith(resume):
        raise ValueError(f'the code of {function.__qualname__} does not begin with RESUME')
    function.__code__ = code.replace(co_code=nothing + code.co_code[len(resume):])


def open_streams():
    """Opens the standard streams as CPython opens those that are no terminal."""
    global STDOUT, STDOUT_BUFFER
    open_stdin()
    STDOUT = sys.stdout = sys.__stdout__ = open_stream(1, 'w', '<stdout>', io.BufferedWriter, errors='surrogateescape')
    # It is flushed also where a program has taken it.
    STDOUT_BUFFER = STDOUT.buffer
    sys.stderr = sys.__stderr__ = open_stream(
        2, 'w', '<stderr>', io.BufferedWriter, errors='backslashreplace', line_buffering=True
    )


def open_stdin():
    """Opens standard input."""
    global STDIN
    STDIN = sys.stdin = sys.__stdin__ = open_stream(0, 'r', '<stdin>', io.BufferedReader, errors='surrogateescape')


def open_stream(descriptor, mode, name, buffer, **options):
    """Opens one standard stream."""
    raw = io.FileIO(descriptor, mode + 'b', closefd=False)
    raw.name = name
    stream = io.TextIOWrapper(buffer(raw), encoding='utf-8', newline='\n', **options)
    stream.mode = mode
    return stream


def import_libraries():
    """Imports what programs use most, and what the build was asked to import."""
    os.register_at_fork = register_at_fork
    # Libraries find no files, as when a program runs.
    stat, lstat = os.stat, os.lstat
    os.stat = os.lstat = find_nothing
    # The C library counts this clock from when the component was built.
    time.process_time, time.process_time_ns = time.perf_counter, time.perf_counter_ns
    for name in [*IMPORTED, *baked_imports.IMPORTS]:
        __import__(name)
    event_loop.install()
    os.stat, os.lstat = stat, lstat
    del os.register_at_fork


def find_nothing(path, **_):
    """Tells that there is no such file."""
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def register_at_fork(*, before=None, after_in_parent=None, after_in_child=None):
    """Notes what has to be renewed in the copy of a process, which is what a run begins with.

    Libraries tell it by `os.register_at_fork`. Those of the standard library renew locks, which nothing holds here.
    """
    name = sys._getframe(1).f_globals['__name__']
    if after_in_child is not None and name.partition('.')[0] not in sys.stdlib_module_names:
        RENEWALS.append(after_in_child)


def warm_up():
    """Executes programs, so that what the interpreter makes when it first needs it is there, and need not be written.

    Above all these are its caches of attributes, the specialised forms of its code, and free blocks of memory.
    """
    for number in range(WARM_UPS):
        fields = {
            'protocol': 1, 'program': PROGRAMS[number % len(PROGRAMS)], 'file': f'warm_up{number}.py', 'args': ['a'],
            'env': {'A': 'a'}, 'options': {},
        }
        header = Header(SCAN(json.dumps(fields), 0)[0])
        header.check()
        header.apply()
        make_main()
        execute(header)


def make_main():
    """Makes the module in which a program is executed."""
    global MAIN
    MAIN = types.ModuleType('__main__')
    MAIN.__builtins__ = builtins
    sys.modules['__main__'] = MAIN


def forget_build():
    """Drops what the build left in the interpreter, and what a program would not find in a process of its own."""
    os.environ.clear()
    sys.path.clear()
    sys.argv[:] = sys.orig_argv[:] = ['']
    os._exit = leave
    # Modules that lie beside a program hide those of the standard library, as they do for CPython.
    sys.meta_path.append(sys.meta_path.pop(0))
    sys.executable = ''
    for name in ('last_exc', 'last_value', 'last_type', 'last_traceback'):
        vars(sys).pop(name, None)
    linecache.clearcache()
    # Not the patterns of programs above, which would seem to compile in no time.
    re.purge()
    make_main()
    gc.collect()
    holes.fill()
    gc.collect()
    # References to the type of files are counted, to see whether any are open.
    immortal.fill_list(OBJECTS, FILE)
    gc.freeze()


# What is called when a program ends, by names that the program cannot take away by accident.
RUN_EXIT_FUNCTIONS = atexit._run_exitfuncs
COUNT_REFERENCES = sys.getrefcount
LIST_OBJECTS = gc.get_objects
FILE = io.FileIO
STREAM = _io._IOBase
READ = os.read
WRITE = os.write
FSTAT = os.fstat
FILE_TYPE = stat.S_IFMT
EXIT = wasi_exit.exit_with_code
SHOW = sys.__excepthook__
TRACEBACK = BaseException.__dict__['__traceback__'].__get__
TO_INT = int.__index__
RECURSION_LIMIT = sys.getrecursionlimit
SET_RECURSION_LIMIT = sys.setrecursionlimit

# How many levels of calls the end of a program takes at most, so that it ends also where the program had set a limit
# that is lower.
ROOM_TO_END = 100

# How many programs of a session were executed.
EXECUTED = 0

# What the descriptors of the standard streams were when the first program of a session began.
DESCRIPTORS = []

# How often programs are executed while the component is built, and which.
WARM_UPS = 60
PROGRAMS = [
    "print('hello')\n",
    "import sys\nfor line in sys.stdin:\n    print(line)\nprint(sys.argv, f'{len(sys.argv):>5}')\n",
    "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\n\n\nprint(f(10), [n * n for n in range(10)])\n",
    "import json, re, math, datetime\nprint(json.dumps({'a': [1, 2.5, None]}), re.sub('(a)b*', 'c', 'abb'), math.pi)\n"
    "print(json.loads('{\"a\": [1, \"b\"]}'), datetime.datetime(2024, 1, 2).isoformat())\n",
    # Without the caches of `re`, so that patterns are parsed and compiled each time.
    "import re\nre.purge()\nprint(re.sub(r'\\s+x', '', 'b xc'), re.search(r'(\\w*)=(?P<a>[\\d.]+)$', 'a 4=2.')['a'])\n"
    "print(re.findall('(?i)[m-p]+?|q{2}|^y', 'mno'), re.split(r'\\s*;\\s*', 'a ; b'), bool(re.fullmatch('k.*', 'kb')))\n",
    "class A:\n    def __init__(self, a):\n        self.a = a\n\n\nprint(A(1).a, {n: str(n) for n in range(3)})\n",
    "import os\ntry:\n    open('/nothing')\nexcept OSError as error:\n    print(error, os.environ['A'])\n",
]

# What is called before a program starts. `random` takes its seed from the host.
RENEWALS = [functools.partial(_random.Random.seed, random._inst)]

# Reads one JSON value from a text.
SCAN = json.JSONDecoder().scan_once

# Everything that is on the stack while code of the program runs, and what its tracer could still see at the end.
HIDDEN = [
    Run.run, Session.execute, execute, run_program, conclude, report, exit_code, finish, flush_files, flush, is_closed,
    tell, leave, EXIT, identify_descriptors, identify,
]
for hidden in HIDDEN:
    hide(hidden)

import_libraries()
open_streams()
OBJECTS = immortal.make_list()
FILES = sys.maxsize
warm_up()
forget_build()
FILES = COUNT_REFERENCES(FILE)
