"""Fills the holes between objects while the component is built, so that a run writes to memory that lies together.

The C library gives out blocks that were freed before it takes new memory. After the build these lie all over the heap,
and each page of it that a run writes to is copied for the run.
"""

# The sizes of blocks, in bytes, from the largest, since a smaller one would divide a larger hole.
SIZES = [*(1 << shift for shift in range(18, 12, -1)), *range(4096, 512, -128), *range(512, 15, -8)]

# How many blocks in a row have to be new memory before a size is done.
ENOUGH = 2

# What a bytes object has beside its bytes, with the header of its block.
OVERHEAD = 21

# The blocks that fill the holes, in a list that does not move to a hole itself.
FILLED = [None] * 50_000
FILLED.clear()


def fill():
    """Takes blocks of each size until they come from new memory."""
    end = max(id(bytes(size)) for size in SIZES)
    for size in SIZES:
        new = 0
        while new < ENOUGH:
            block = bytes(max(size - OVERHEAD, 1))
            FILLED.append(block)
            new = new + 1 if id(block) > end else 0
