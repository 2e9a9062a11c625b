"""Reads and writes WebAssembly: numbers, sections, and the parts of a core module that a linker has to know.

The format is that of https://webassembly.github.io/spec/core/binary. Only what compilers of C, C++ and Rust make of 32
bit modules is read; what else a module may hold is refused by name, since it would be linked wrongly otherwise.
"""

# The sections of a core module, by their numbers.
CUSTOM, TYPES, IMPORTS, FUNCTIONS, TABLES, MEMORIES, GLOBALS, EXPORTS, START, ELEMENTS, CODE, DATA, DATA_COUNT = range(13)

# The kinds of imports and exports of a core module.
FUNCTION, TABLE, MEMORY, GLOBAL = range(4)

# How the types of values are written.
NUMBER_TYPES = {0x7F: 'i32', 0x7E: 'i64', 0x7D: 'f32', 0x7C: 'f64'}
REFERENCE_TYPES = {0x70: 'funcref', 0x6F: 'externref'}


class Unsupported(Exception):
    """What a module or a component has, and this linker does not know."""


def sections(binary):
    """Yields the number and the content of each section of a module or component."""
    at = 8
    while at < len(binary):
        kind = binary[at]
        length, at = read_number(binary, at + 1)
        yield kind, binary[at:at + length]
        at += length


def section(kind, body):
    """Returns a section as bytes."""
    return bytes([kind]) + number(len(body)) + body


def read_number(binary, at):
    """Reads a number in LEB128, and returns it and where it ends."""
    value = shift = 0
    while True:
        byte = binary[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def number(value):
    """Returns a number in LEB128."""
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def read_signed(binary, at):
    """Reads a number in signed LEB128, and returns it and where it ends."""
    value = shift = 0
    while True:
        byte = binary[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << shift) if byte & 0x40 else value), at


def signed(value):
    """Returns a number in signed LEB128."""
    result = bytearray()
    while not -0x40 <= value < 0x40:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value & 0x7F)
    return bytes(result)


def read_name(binary, at):
    """Reads a name, and returns its bytes and where it ends."""
    length, at = read_number(binary, at)
    return bytes(binary[at:at + length]), at + length


def name(text):
    """Returns a name as bytes."""
    return number(len(text)) + text


def vector(parts):
    """Returns a list of parts that are bytes already."""
    return number(len(parts)) + b''.join(parts)


class Module:
    """A core module, read: its lists hold what is defined and imported in the order of their indices."""

    def __init__(self, binary):
        """Reads a module."""
        self.types = []
        # What is imported: module, name, kind, and a type (of a function) or what is known of the thing.
        self.imports = []
        # Types of the functions that are defined, by their index, and their bodies.
        self.functions = []
        self.bodies = []
        # Tables as (minimum, maximum or None); memories the same; globals as (type, is mutable, initial expression).
        self.tables = []
        self.memories = []
        self.globals = []
        # Exports by their names, as kind and index.
        self.exports = {}
        # Elements as (table, expression of the offset, functions).
        self.elements = []
        # Data as (expression of the offset, or None where it is passive; bytes).
        self.data = []
        # Names of functions, by their index.
        self.names = {}
        readers = {
            TYPES: self._read_types, IMPORTS: self._read_imports, FUNCTIONS: self._read_functions,
            TABLES: self._read_tables, MEMORIES: self._read_memories, GLOBALS: self._read_globals,
            EXPORTS: self._read_exports, ELEMENTS: self._read_elements, CODE: self._read_code, DATA: self._read_data,
        }
        for kind, body in sections(binary):
            if kind == CUSTOM:
                self._read_custom(body)
            elif kind in readers:
                count, at = read_number(body, 0)
                for _ in range(count):
                    at = readers[kind](body, at)
            elif kind == START:
                raise Unsupported('a module has a start function')
            elif kind != DATA_COUNT:
                raise Unsupported(f'a module has a section of the kind {kind}')

    def _read_types(self, body, at):
        start = at
        if body[at] != 0x60:
            raise Unsupported(f'a type is not of a function, but of the kind {body[at]:#x}')
        at += 1
        for _ in range(2):
            count, at = read_number(body, at)
            for value_type in body[at:at + count]:
                if value_type not in NUMBER_TYPES and value_type not in REFERENCE_TYPES:
                    raise Unsupported(f'a value has the type {value_type:#x}')
            at += count
        self.types.append(bytes(body[start:at]))
        return at

    def _read_imports(self, body, at):
        module, at = read_name(body, at)
        field, at = read_name(body, at)
        kind = body[at]
        if kind == FUNCTION:
            described, at = read_number(body, at + 1)
        elif kind == TABLE:
            described, at = self._read_table(body, at + 1)
        elif kind == MEMORY:
            described, at = self._read_limits(body, at + 1)
        elif kind == GLOBAL:
            described, at = (body[at + 1], body[at + 2]), at + 3
        else:
            raise Unsupported(f'an import is of the kind {kind}')
        self.imports.append((module, field, kind, described))
        return at

    def _read_functions(self, body, at):
        index, at = read_number(body, at)
        self.functions.append(index)
        return at

    def _read_tables(self, body, at):
        table, at = self._read_table(body, at)
        self.tables.append(table)
        return at

    def _read_table(self, body, at):
        if body[at] != 0x70:
            raise Unsupported(f'a table is not of functions, but of the type {body[at]:#x}')
        return self._read_limits(body, at + 1)

    def _read_memories(self, body, at):
        limits, at = self._read_limits(body, at)
        self.memories.append(limits)
        return at

    def _read_limits(self, body, at):
        flags = body[at]
        if flags > 1:
            raise Unsupported(f'a table or memory has the flags {flags:#x}: it is shared, of 64 bits or of odd pages')
        minimum, at = read_number(body, at + 1)
        maximum = None
        if flags:
            maximum, at = read_number(body, at)
        return (minimum, maximum), at

    def _read_globals(self, body, at):
        value_type, is_mutable = body[at], body[at + 1]
        if value_type not in NUMBER_TYPES:
            raise Unsupported(f'a global has the type {value_type:#x}')
        expression, at = read_expression(body, at + 2)
        self.globals.append((value_type, is_mutable, expression))
        return at

    def _read_exports(self, body, at):
        field, at = read_name(body, at)
        kind = body[at]
        index, at = read_number(body, at + 1)
        self.exports[field] = (kind, index)
        return at

    def _read_elements(self, body, at):
        flags, at = read_number(body, at)
        table = 0
        if flags == 2:
            table, at = read_number(body, at)
        elif flags != 0:
            raise Unsupported(f'elements have the flags {flags}: they are not simply put into a table')
        expression, at = read_expression(body, at)
        if flags == 2:
            if body[at] != 0:
                raise Unsupported(f'elements are of the kind {body[at]}')
            at += 1
        count, at = read_number(body, at)
        functions = []
        for _ in range(count):
            index, at = read_number(body, at)
            functions.append(index)
        self.elements.append((table, expression, functions))
        return at

    def _read_code(self, body, at):
        length, at = read_number(body, at)
        self.bodies.append(bytes(body[at:at + length]))
        return at + length

    def _read_data(self, body, at):
        flags, at = read_number(body, at)
        expression = None
        if flags == 2:
            memory, at = read_number(body, at)
            if memory != 0:
                raise Unsupported('data is for a second memory')
        if flags in (0, 2):
            expression, at = read_expression(body, at)
        elif flags != 1:
            raise Unsupported(f'data has the flags {flags}')
        length, at = read_number(body, at)
        self.data.append((expression, body[at:at + length]))
        return at + length

    def _read_custom(self, body):
        title, at = read_name(body, 0)
        while title == b'name' and at < len(body):
            kind = body[at]
            length, at = read_number(body, at + 1)
            end = at + length
            if kind == 1:
                count, at = read_number(body, at)
                for _ in range(count):
                    index, at = read_number(body, at)
                    self.names[index], at = read_name(body, at)
            at = end


def read_expression(body, at):
    """Reads an expression that is constant, and returns its instructions as (opcode, value) and where it ends."""
    instructions = []
    while body[at] != 0x0B:
        opcode = body[at]
        if opcode in (0x41, 0x42):
            value, at = read_signed(body, at + 1)
        elif opcode == 0x23:
            value, at = read_number(body, at + 1)
        elif opcode in (0x6A, 0x6B, 0x6C):
            value, at = None, at + 1
        elif opcode in (0x43, 0x44):
            end = at + (5 if opcode == 0x43 else 9)
            value, at = bytes(body[at + 1:end]), end
        else:
            raise Unsupported(f'a constant expression has the instruction {opcode:#x}')
        instructions.append((opcode, value))
    return instructions, at + 1


# What in a body depends on the module that it is in.
CALL, CALL_INDIRECT, GLOBAL_GET, GLOBAL_SET, TABLE_USE, BLOCK_TYPE, SEGMENT = range(7)

# What follows an opcode: nothing, numbers (one or two), a block's type, or what has a case of its own in `references`.
_NOTHING, _ONE, _TWO, _BLOCK, _OTHER, _UNKNOWN = range(6)


def _operands():
    """Returns what follows each opcode."""
    kinds = [_UNKNOWN] * 256
    for opcode in (0x00, 0x01, 0x05, 0x0B, 0x0F, 0x1A, 0x1B, *range(0x45, 0xC5), 0xD1):
        kinds[opcode] = _NOTHING
    for opcode in (0x02, 0x03, 0x04):
        kinds[opcode] = _BLOCK
    # Branches, locals, size and growth of memory, constants that are integers, null.
    for opcode in (0x0C, 0x0D, 0x20, 0x21, 0x22, 0x3F, 0x40, 0x41, 0x42, 0xD0):
        kinds[opcode] = _ONE
    for opcode in range(0x28, 0x3F):
        kinds[opcode] = _TWO
    for opcode in (0x0E, 0x10, 0x11, 0x1C, 0x23, 0x24, 0x25, 0x26, 0x43, 0x44, 0xD2, 0xFC):
        kinds[opcode] = _OTHER
    return kinds


_OPERANDS = _operands()


def references(body):
    """Returns what in a function's body depends on its module, in order, as (start, end, kind, value, value)."""
    found = []
    at = _skip_locals(body)
    size = len(body)
    operands = _OPERANDS
    while at < size:
        opcode = body[at]
        kind = operands[opcode]
        if kind == _NOTHING:
            at += 1
        elif kind == _ONE:
            at += 1
            while body[at] >= 0x80:
                at += 1
            at += 1
        elif kind == _TWO:
            if body[at + 1] & 0x40:
                raise Unsupported('a function uses a second memory')
            at += 1
            while body[at] >= 0x80:
                at += 1
            at += 1
            while body[at] >= 0x80:
                at += 1
            at += 1
        elif kind == _BLOCK:
            start = at + 1
            block, at = read_signed(body, start)
            if block >= 0:
                found.append((start, at, BLOCK_TYPE, block, None))
        else:
            at = _OTHERS.get(opcode, _read_unknown)(body, at, found)
    return found


def _skip_locals(body):
    count, at = read_number(body, 0)
    for _ in range(count):
        _, at = read_number(body, at)
        if body[at] not in NUMBER_TYPES and body[at] not in REFERENCE_TYPES:
            raise Unsupported(f'a local has the type {body[at]:#x}')
        at += 1
    return at


def _read_unknown(body, at, found):
    raise Unsupported(f'a function has the instruction {body[at]:#x}')


def _read_branches(body, at, found):
    count, at = read_number(body, at + 1)
    for _ in range(count + 1):
        _, at = read_number(body, at)
    return at


def _read_call(body, at, found):
    function, end = read_number(body, at + 1)
    found.append((at, end, CALL, function, None))
    return end


def _read_call_indirect(body, at, found):
    function_type, end = read_number(body, at + 1)
    table, end = read_number(body, end)
    found.append((at, end, CALL_INDIRECT, function_type, table))
    return end


def _read_select(body, at, found):
    count, at = read_number(body, at + 1)
    return at + count


def _read_global_get(body, at, found):
    """Reads a global, and the constant that is added to it at once, which is how addresses are made."""
    index, end = read_number(body, at + 1)
    added = None
    if body[end] == 0x41:
        value, after = read_signed(body, end + 1)
        if body[after] == 0x6A:
            added = (after + 1, value)
    found.append((at, end, GLOBAL_GET, index, added))
    return end


def _read_global_set(body, at, found):
    index, end = read_number(body, at + 1)
    found.append((at, end, GLOBAL_SET, index, None))
    return end


def _read_table_use(body, at, found):
    table, end = read_number(body, at + 1)
    found.append((at + 1, end, TABLE_USE, table, body[at] == 0x26))
    return end


def _read_function_reference(body, at, found):
    raise Unsupported('a function takes a reference of a function')


def _read_float(body, at, found):
    return at + (5 if body[at] == 0x43 else 9)


def _read_prefixed(body, at, found):
    """Reads an instruction of those that begin with 0xFC."""
    opcode, start = read_number(body, at + 1)
    if opcode <= 7:
        return start
    if opcode == 8:
        segment, end = read_number(body, start)
        found.append((start, end, SEGMENT, segment, None))
        return end + 1
    if opcode == 9:
        segment, end = read_number(body, start)
        found.append((start, end, SEGMENT, segment, None))
        return end
    if opcode == 10:
        return start + 2
    if opcode == 11:
        return start + 1
    if opcode in (15, 16, 17):
        table, end = read_number(body, start)
        found.append((start, end, TABLE_USE, table, opcode != 16))
        return end
    raise Unsupported(f'a function has the instruction 0xfc {opcode}')


_OTHERS = {
    0x0E: _read_branches, 0x10: _read_call, 0x11: _read_call_indirect, 0x1C: _read_select, 0x23: _read_global_get,
    0x24: _read_global_set, 0x25: _read_table_use, 0x26: _read_table_use, 0x43: _read_float, 0x44: _read_float,
    0xD2: _read_function_reference, 0xFC: _read_prefixed,
}
