"""Overwrites memory that is free while the component is built, so that equal sources give equal bytes.

What was freed keeps its bytes, and among them are the numbers of the build's files, which differ from build to build.
They would get into the gaps between the fields of objects that are made later.
"""

import gc
import os

# The sizes of small blocks, in bytes.
SIZES = range(32, 513, 16)

# How many bytes of blocks of each size are taken at once: more than are free.
TAKEN = 1 << 17

# What a bytes object has beside its bytes.
OVERHEAD = 17


def scrub():
    """Overwrites the free blocks of the interpreter, and then those of the C library."""
    gc.collect()
    blocks = [float(number) for number in range(TAKEN // 16)]
    blocks += [bytes(size - OVERHEAD) for size in SIZES for _ in range(TAKEN // size)]
    # The C library keeps each variable in a block of its own.
    names = [(f'{size}_{number:03}', size) for size in SIZES for number in range(100)]
    for name, size in names:
        os.putenv(name, '0' * (size - len(name) - 6))
    blocks += [bytes(1 << shift) for shift in range(18, 9, -1)]
    for name, _ in names:
        os.unsetenv(name)
