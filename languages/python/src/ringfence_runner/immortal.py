"""Lists the objects that the build leaves, so that immortal.py beside build.py can make them immortal.

An interpreter counts references in the object itself, so that a run that only reads an object writes to its page, which
then is copied for the run. CPython counts no references of an object whose count is 2**30 or more. Python code cannot
set a count, but it knows where objects are: it leaves a bit for each, and the build sets the counts.
"""

import gc
import sys
import types

# What the list begins with, turned around, since this constant is in memory, too.
MAGIC = b'stcejbo-lla-efr!'

# Objects are at multiples of so many bytes.
ALIGNMENT = 8

# The bytes before the bits: the text above, where `type` is, and how many objects there are.
HEADER = 24

# How many bytes the objects may reach beyond the end that memory has when the list is made.
MARGIN = 1 << 22

# What code refers to, of which the collector does not know.
OF_CODE = ('co_consts', 'co_names', 'co_name', 'co_qualname', 'co_filename')


def make_list():
    """Makes a list without objects, for all addresses up to some megabytes from here."""
    return bytearray(HEADER + (id(bytes(1 << 16)) + MARGIN) // ALIGNMENT // 8)


def fill_list(found, *mortal):
    """Puts all objects that can be found into a list, but for those whose references somebody has to count."""
    kept = {id(thing) for thing in mortal}
    count = 0
    waiting = gc.get_objects()
    kept.add(id(waiting))
    while waiting:
        thing = waiting.pop()
        address = id(thing)
        at = HEADER + address // ALIGNMENT // 8
        bit = 1 << address // ALIGNMENT % 8
        if address % ALIGNMENT or at >= len(found) or found[at] & bit or address in kept or sys._is_immortal(thing):
            continue
        found[at] |= bit
        count += 1
        waiting += gc.get_referents(thing)
        if type(thing) is types.CodeType:
            waiting += [getattr(thing, name) for name in OF_CODE]
    found[16:20] = id(type).to_bytes(4, 'little')
    found[20:24] = count.to_bytes(4, 'little')
    found[0:16] = MAGIC[::-1]
