"""Makes one component of several that were built of equal sources, so that it is the same wherever they were built.

Even where randomness and time are fixed (componentize.py), some twenty bytes of the memory in a component differ from
build to build. They are left in gaps between the fields of objects and in freed blocks, and come from the numbers that
the host's file system gives to files. Nothing reads them. Each is found by comparing the builds, and set to zero.
"""

from wasm import DATA, number, read_number, section, sections, signed

# The number of the section that holds a module within a component.
CORE_MODULE = 1

# Data is divided where so many zeros follow each other.
GAP = 1024


class NotReproducible(Exception):
    """Why the components are not of equal sources."""


def merge(components):
    """Returns the component that all of them are but for their gaps."""
    first, *others = [list(sections(component)) for component in components]
    result = bytearray(components[0][:8])
    for at, (kind, body) in enumerate(first):
        same = [other[at] for other in others if len(other) == len(first) and other[at][0] == kind]
        if len(same) != len(others):
            raise NotReproducible('the components have different sections')
        if any(other != body for _, other in same):
            if kind != CORE_MODULE:
                raise NotReproducible(f'the components differ in section {at}, which is no module')
            body = merge_modules([body, *(other for _, other in same)])
        result += section(kind, body)
    return bytes(result)


def merge_modules(modules):
    """Returns the module that all of them are but for gaps in their data."""
    lists = [list(sections(module)) for module in modules]
    result = bytearray(modules[0][:8])
    for at, (kind, body) in enumerate(lists[0]):
        bodies = [entry[at][1] for entry in lists]
        if kind == DATA:
            body = merge_data(bodies)
        elif any(other != body for other in bodies):
            raise NotReproducible(f'the modules differ in section {kind}, which is no data')
        result += section(kind, body)
    return bytes(result)


def merge_data(bodies):
    """Returns the data of a module with zeros where the builds differ."""
    images = [image(body) for body in bodies]
    size = max(len(one) for one in images)
    first, *others = [one + bytes(size - len(one)) for one in images]
    merged = bytearray(first)
    differing = 0
    for other in others:
        for start in range(0, size, 4096):
            if first[start:start + 4096] != other[start:start + 4096]:
                for at in range(start, min(start + 4096, size)):
                    if first[at] != other[at]:
                        merged[at] = 0
                        differing += 1
    if differing > 500:
        raise NotReproducible(f'{differing} bytes of memory differ, and some twenty are expected')
    return segments(bytes(merged))


def image(body):
    """Returns the memory that a data section fills."""
    count, at = read_number(body, 0)
    memory = bytearray()
    for _ in range(count):
        kind, at = read_number(body, at)
        if kind != 0 or body[at] != 0x41:
            raise NotReproducible('the data of a module is not where it is expected')
        offset, at = read_number(body, at + 1)
        length, at = read_number(body, at + 1)
        if len(memory) < offset + length:
            memory.extend(bytes(offset + length - len(memory)))
        memory[offset:offset + length] = body[at:at + length]
        at += length
    return bytes(memory)


def segments(memory):
    """Returns the data section that fills a memory, without its long stretches of zeros."""
    parts = []
    gap = bytes(GAP)
    at = 0
    while at < len(memory):
        if memory[at] == 0:
            at += len(memory[at:at + 65536]) - len(memory[at:at + 65536].lstrip(b'\0'))
            continue
        end = memory.find(gap, at)
        end = len(memory) if end < 0 else end
        parts.append(b'\0\x41' + signed(at) + b'\x0b' + number(end - at) + memory[at:end])
        at = end
    return number(len(parts)) + b''.join(parts)
