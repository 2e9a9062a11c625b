"""Makes the objects of the interpreter in a component immortal, so that a run does not write to those that it reads.

`src/ringfence_runner/immortal.py` says why, and leaves a list of objects in memory. Here each object of it gets the count
of references that CPython takes for immortal, and the list is cleared. Nothing is lost by it: the memory of a run is
dropped as a whole, and what is listed would hardly be freed before.

The stack is cleared as well. What calls have left below its pointer is of no use, and differs from build to build.
"""

import struct

from reproduce import CORE_MODULE, image, segments
from wasm import DATA, DATA_COUNT, GLOBAL, Module, read_number, section, sections

# What the list begins with: this, then where `type` is and how many objects there are (4 bytes each), then a bit for
# each address of an object. As in the runner.
MAGIC = b'!rfe-all-objects'
HEADER = 24
ALIGNMENT = 8

# The count of references of an immortal object where pointers have 32 bits (_Py_IMMORTAL_INITIAL_REFCNT).
IMMORTAL = 5 << 28

# Counts of references are less. What is more is an address, by which freed blocks are linked: the object is not there
# any more.
MOST_REFERENCES = 1 << 20

# Where a type has its flags, and in their last byte the one for types whose objects are types.
TYPE_FLAGS = 84
IS_DERIVED_FROM_TYPE = 0x80


class Unexpected(Exception):
    """What the component has otherwise than the runner and componentize-py leave it."""


def immortalise(component):
    """Returns the component with immortal objects."""
    result = [component[:8]]
    changed = 0
    for kind, body in sections(component):
        if kind == CORE_MODULE and MAGIC in body:
            body = change_module(body)
            changed += 1
        result.append(section(kind, body))
    if changed != 1:
        raise Unexpected(f'{changed} modules have a list of the interpreter\'s objects, and one is expected')
    return b''.join(result)


def change_module(module):
    """Returns a module whose data has immortal objects and a clean stack."""
    parts = dict(sections(module))
    memory = bytearray(image(parts[DATA]))
    change_memory(memory)
    end = stack_pointer(module)
    memory[:end] = bytes(end)
    data = segments(bytes(memory))
    result = [module[:8]]
    for kind, body in sections(module):
        if kind == DATA:
            body = data
        elif kind == DATA_COUNT:
            body = data[:read_number(data, 0)[1]]
        result.append(section(kind, body))
    return b''.join(result)


def stack_pointer(module):
    """Returns where the stack begins, which goes down to address 0 and holds nothing yet."""
    read = Module(module)
    kind, index = read.exports.get(b'__stack_pointer', (None, None))
    if kind != GLOBAL or any(entry[2] == GLOBAL for entry in read.imports):
        raise Unexpected('the module with the memory does not say where its stack is')
    (_, pointer), = read.globals[index][2]
    return pointer


def change_memory(memory):
    """Makes the listed objects immortal, and clears the list."""
    root, addresses = take_list(memory)
    for address in addresses:
        count, kind = struct.unpack_from('<II', memory, address)
        if 0 < count < MOST_REFERENCES and is_type(memory, kind, root):
            struct.pack_into('<I', memory, address, IMMORTAL)


def is_type(memory, address, root):
    """Tells whether a type is at an address: an object of `type`, or of a class that is derived from it."""
    kind = type_of(memory, address)
    return type_of(memory, kind) == root and bool(memory[kind + TYPE_FLAGS + 3] & IS_DERIVED_FROM_TYPE)


def type_of(memory, address):
    """Returns the address of an object's type, or 0 where there is no object."""
    if address % 4 or not 0 < address < len(memory) - TYPE_FLAGS - 4:
        return 0
    return struct.unpack_from('<I', memory, address + 4)[0]


def take_list(memory):
    """Clears the list, and returns the address of `type` and those of the objects."""
    at = memory.find(MAGIC)
    while at >= 0:
        root, count = struct.unpack_from('<II', memory, at + len(MAGIC))
        addresses = []
        end = at + HEADER
        while len(addresses) < count and end < len(memory):
            bits = memory[end]
            if bits:
                first = (end - at - HEADER) * 8
                addresses += [(first + bit) * ALIGNMENT for bit in range(8) if bits & 1 << bit]
            end += 1
        if count and len(addresses) == count and addresses[-1] < len(memory) - 8:
            memory[at:end] = bytes(end - at)
            return root, addresses
        # The bytes that the list was begun with are elsewhere in memory, too.
        at = memory.find(MAGIC, at + 1)
    raise Unexpected('the runner has left no list of its objects')
