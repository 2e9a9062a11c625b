#!/usr/bin/env python3
"""Links the core modules of a component into one: `link.py IN OUT`.

componentize-py makes a component of some ten shared libraries, which whoever runs it links in each instance anew: they
share a memory and a table that one of them defines, find each other's functions and addresses by 2,200 imports, and
fill the table entry by entry. All of that is known when the component is built. So the modules are put together here:
addresses become constants, calls between modules become calls within one, and the table is filled by constant elements,
which an engine prepares when it compiles. What nothing reaches is left out.

Apart remain modules whose imports need the memory of the others (canonical functions that lower texts and lists). That
is one small module, by which wit-component fills a table of the functions that are imported too late to be imported.

Modules are put together as if all were instantiated before anything is executed. That is right since no start function
is accepted: componentize-py has executed them already, and kept the memory that they left.
"""

import sys
from pathlib import Path

import wasm
from component import Canon, Component, Writer, number_text
from wasm import FUNCTION, GLOBAL, MEMORY, TABLE, Unsupported, name, number, read_number, section, signed, vector

# The first eight bytes of a core module.
MODULE_MAGIC = b'\0asm\x01\0\0\0'


def link(binary):
    """Returns a component that does the same, with as few core modules as can be."""
    component = Component(binary)
    return Writer(component, merge(component)).write()


def merge(component):
    """Puts together the modules that can be, and returns the module that they are."""
    merged = Merged()
    for instance in component.instances:
        if instance.module is None:
            continue
        module = wasm.Module(component.modules[instance.module])
        sources = [(entry, component.resolve(instance.arguments[entry[0]], entry[1])) for entry in module.imports]
        if not any(is_late(source) for _, source in sources):
            merged.add(instance, module, sources)
    merged.initialise()
    return merged


def is_late(source):
    """Tells whether something is there only when the merged module is, and is not of it."""
    if isinstance(source, Canon):
        return source.needs_an_instance()
    return source[0].spaces is None


class Function:
    """A function that one of the modules defines."""

    def __init__(self, instance, function_type, body, title):
        """Creates a function that nothing has reached yet."""
        self.instance, self.type, self.body, self.title = instance, function_type, body, title
        self.references = wasm.references(body)
        self.number = None


class Outside:
    """A function that the linked module imports."""

    def __init__(self, function_type, source, title):
        """Creates an import of what `source` names."""
        self.type, self.source, self.title = function_type, source, title
        self.number = None


class Global:
    """A global that one of the modules defines."""

    def __init__(self, value_type, value):
        """Creates a global that nobody sets, as far as is known yet."""
        self.type, self.value = value_type, value
        self.is_set = False
        self.number = None


class Table:
    """A table that one of the modules defines, with the functions that it begins with."""

    def __init__(self, limits):
        """Creates a table without functions."""
        self.limits = limits
        self.entries = {}
        self.is_changed = False
        self.number = None


class Memory:
    """A memory that one of the modules defines."""

    def __init__(self, limits):
        """Creates a memory."""
        self.limits = limits
        self.number = None


class Merged:
    """The modules that are put together: all that they define, and from where they import the rest."""

    def __init__(self):
        """Creates a module without anything."""
        self.functions, self.globals, self.tables, self.memories = [], [], [], []
        # Data as (offset or None, bytes).
        self.data = []
        self.outsides = {}
        self.members = []
        # What is exported, by its name, and under which name the export of an instance is.
        self.exports, self.export_names = {}, {}

    def add(self, instance, module, sources):
        """Adds an instance of a module, whose imports are `sources`."""
        spaces = {FUNCTION: [], TABLE: [], MEMORY: [], GLOBAL: []}
        for (_, title, kind, described), source in sources:
            if isinstance(source, Canon):
                spaces[kind].append(self._outside(module.types[described], source, title))
            else:
                found_kind, found = exported(source)
                if found_kind != kind:
                    raise Unsupported(f'the import {title.decode()} is of another kind than what is exported to it')
                spaces[kind].append(found)
        for index, function_type in enumerate(module.functions):
            title = module.names.get(len(spaces[FUNCTION]))
            function = Function(instance, module.types[function_type], module.bodies[index], title)
            spaces[FUNCTION].append(function)
            self.functions.append(function)
        for kind, limits, kept, make in (
            (TABLE, module.tables, self.tables, Table), (MEMORY, module.memories, self.memories, Memory),
        ):
            made = [make(one) for one in limits]
            spaces[kind] += made
            kept += made
        for value_type, _, expression in module.globals:
            one = Global(value_type, evaluate(expression, spaces[GLOBAL]))
            spaces[GLOBAL].append(one)
            self.globals.append(one)
        instance.spaces, instance.types, instance.first_data = spaces, module.types, len(self.data)
        instance.names = module.exports
        for expression, content in module.data:
            self.data.append((None if expression is None else evaluate(expression, spaces[GLOBAL]), content))
        self.members.append((instance, module))

    def _outside(self, function_type, source, title):
        if source not in self.outsides:
            self.outsides[source] = Outside(function_type, source, title)
        return self.outsides[source]

    def initialise(self):
        """Fills the tables, and finds out which of them the modules change."""
        if len(self.memories) > 1:
            raise Unsupported('the modules have more than one memory')
        for instance, module in self.members:
            for table, expression, functions in module.elements:
                filled = instance.spaces[TABLE][table]
                first = evaluate(expression, instance.spaces[GLOBAL]) % 2**32
                if first + len(functions) > filled.limits[0]:
                    raise Unsupported('elements are outside of their table')
                for at, function in enumerate(functions):
                    filled.entries[first + at] = instance.spaces[FUNCTION][function]
        for function in self.functions:
            for _, _, kind, value, changes in function.references:
                if kind == wasm.TABLE_USE and changes:
                    function.instance.spaces[TABLE][value].is_changed = True

    def export(self, kind, source):
        """Has something exported, and returns it if it is of this module."""
        if isinstance(source, Canon) or source[0].spaces is None:
            return
        found_kind, found = exported(source)
        if found_kind != kind:
            raise Unsupported(f'the export {source[1].decode()} is of another kind than its use')
        if kind == TABLE:
            found.is_changed = True
        if kind == GLOBAL:
            raise Unsupported(f'the global {source[1].decode()} is used by a module that stays apart')
        title = source[1]
        while self.exports.setdefault(title, (kind, found))[1] is not found:
            title += b"'"
        self.export_names[source] = title

    def target(self, function):
        """Returns the function that is called in the end where one only calls an entry of a table that never changes.

        The main module has such a function for each that it exports before the module is there that defines it.
        """
        if isinstance(function, Outside):
            return function
        if len(function.references) != 1 or function.references[0][2] != wasm.CALL_INDIRECT:
            return function
        start, end, _, _, table = function.references[0]
        table = function.instance.spaces[TABLE][table]
        count, _ = read_number(function.type, 1)
        passed = b'\0' + b''.join(b'\x20' + number(at) for at in range(count)) + b'\x41'
        if table.is_changed or not function.body.startswith(passed):
            return function
        entry, after = wasm.read_signed(function.body, len(passed))
        found = table.entries.get(entry % 2**32)
        if after != start or function.body[end:] != b'\x0b' or found is None or found.type != function.type:
            return function
        return self.target(found)

    def reach(self):
        """Returns the functions that exports, tables and other such functions reach, each with its number."""
        waiting = [self.target(found) for kind, found in self.exports.values() if kind == FUNCTION]
        for table in self.tables:
            waiting += [self.target(entry) for entry in table.entries.values()]
        reached = set()
        while waiting:
            function = waiting.pop()
            if function in reached:
                continue
            reached.add(function)
            if isinstance(function, Function):
                space = function.instance.spaces
                for _, _, kind, value, _ in function.references:
                    if kind == wasm.CALL:
                        waiting.append(self.target(space[FUNCTION][value]))
                    elif kind == wasm.GLOBAL_SET:
                        space[GLOBAL][value].is_set = True
        imported = [one for one in self.outsides.values() if one in reached]
        defined = [one for one in self.functions if one in reached]
        for index, function in enumerate(imported + defined):
            function.number = index
        return imported, defined

    def write(self):
        """Returns the module as bytes, and what it imports."""
        imported, defined = self.reach()
        variables = [one for one in self.globals if one.is_set]
        for kept in (variables, self.tables, self.memories):
            for index, one in enumerate(kept):
                one.number = index
        types = {}
        for function in imported + defined:
            types.setdefault(function.type, len(types))
        bodies = [self._rewrite(function, types) for function in defined]
        parts = [
            (wasm.IMPORTS, [
                name(b'import') + name(number_text(one.number)) + b'\0' + number(types[one.type]) for one in imported
            ]),
            (wasm.FUNCTIONS, [number(types[function.type]) for function in defined]),
            (wasm.TABLES, [b'\x70' + limits(one.limits) for one in self.tables]),
            (wasm.MEMORIES, [limits(one.limits) for one in self.memories]),
            (wasm.GLOBALS, [bytes([one.type, 1]) + constant(one.type, one.value) + b'\x0b' for one in variables]),
            (wasm.EXPORTS, [
                name(title) + bytes([kind]) + number((self.target(found) if kind == FUNCTION else found).number)
                for title, (kind, found) in self.exports.items()
            ]),
            (wasm.ELEMENTS, [part for table in self.tables for part in self._elements(table)]),
            (wasm.DATA_COUNT, None),
            (wasm.CODE, [number(len(body)) + body for body in bodies]),
            (wasm.DATA, [data(offset, content) for offset, content in self.data]),
        ]
        result = [MODULE_MAGIC, section(wasm.TYPES, vector(list(types)))]
        for kind, entries in parts:
            if entries is None:
                result.append(section(kind, number(len(self.data))))
            elif entries:
                result.append(section(kind, vector(entries)))
        result.append(section(wasm.CUSTOM, name(b'name') + names(imported + defined)))
        return b''.join(result), imported

    def _elements(self, table):
        """Returns the elements that fill a table, one part for each stretch without a gap."""
        stretches = []
        for at in sorted(table.entries):
            if not stretches or at != stretches[-1][0] + len(stretches[-1][1]):
                stretches.append((at, []))
            stretches[-1][1].append(number(self.target(table.entries[at]).number))
        for at, functions in stretches:
            where = constant(0x7F, at) + b'\x0b'
            if table.number == 0:
                yield b'\0' + where + vector(functions)
            else:
                yield b'\x02' + number(table.number) + where + b'\0' + vector(functions)

    def _rewrite(self, function, types):
        """Returns the body of a function with the indices of the linked module."""
        body, instance = function.body, function.instance
        spaces = instance.spaces
        result = []
        last = 0
        for start, end, kind, value, more in function.references:
            if start < last:
                continue
            result.append(body[last:start])
            if kind == wasm.CALL:
                result.append(b'\x10' + number(self.target(spaces[FUNCTION][value]).number))
            elif kind == wasm.GLOBAL_GET:
                one = spaces[GLOBAL][value]
                if one.number is not None:
                    result.append(b'\x23' + number(one.number))
                elif more is None or one.type != 0x7F:
                    result.append(constant(one.type, one.value))
                else:
                    end, added = more
                    result.append(constant(0x7F, one.value + added))
            elif kind == wasm.GLOBAL_SET:
                result.append(b'\x24' + number(spaces[GLOBAL][value].number))
            elif kind == wasm.CALL_INDIRECT:
                index = types.setdefault(instance.types[value], len(types))
                result.append(b'\x11' + number(index) + number(spaces[TABLE][more].number))
            elif kind == wasm.TABLE_USE:
                result.append(number(spaces[TABLE][value].number))
            elif kind == wasm.BLOCK_TYPE:
                result.append(signed(types.setdefault(instance.types[value], len(types))))
            else:
                result.append(number(instance.first_data + value))
            last = end
        result.append(body[last:])
        return b''.join(result)


def exported(source):
    """Returns the kind of an export of a merged instance, and what is exported."""
    instance, title = source
    if title not in instance.names:
        raise Unsupported(f'{title.decode()} is used, but its module does not export it')
    kind, index = instance.names[title]
    return kind, instance.spaces[kind][index]


def evaluate(expression, variables):
    """Returns the value of a constant expression: a number, or bytes for a float."""
    stack = []
    for opcode, value in expression:
        if opcode == 0x23:
            stack.append(variables[value].value)
        elif value is not None:
            stack.append(value)
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(left + right if opcode == 0x6A else left - right if opcode == 0x6B else left * right)
    return stack.pop()


def constant(value_type, value):
    """Returns the instruction that gives a constant."""
    if isinstance(value, bytes):
        return bytes([0x43 if value_type == 0x7D else 0x44]) + value
    bits = 32 if value_type == 0x7F else 64
    wrapped = (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    return bytes([0x41 if bits == 32 else 0x42]) + signed(wrapped)


def limits(pair):
    """Returns the limits of a table or memory as bytes."""
    minimum, maximum = pair
    return b'\0' + number(minimum) if maximum is None else b'\x01' + number(minimum) + number(maximum)


def data(offset, content):
    """Returns a data segment as bytes."""
    where = b'\x01' if offset is None else b'\0' + constant(0x7F, offset) + b'\x0b'
    return where + number(len(content)) + content


def names(functions):
    """Returns the names of functions, as a part of the name section."""
    named = [number(one.number) + name(one.title) for one in functions if one.title]
    body = vector(named)
    return b'\x01' + number(len(body)) + body


def main():
    """Links the component that the command line names, and returns the exit code."""
    if len(sys.argv) != 3:
        sys.exit('link.py: give the component to read and the file to write')
    try:
        linked = link(Path(sys.argv[1]).read_bytes())
    except Unsupported as error:
        print(f'link.py: {error}', file=sys.stderr)
        return 1
    Path(sys.argv[2]).write_bytes(linked)
    return 0


if __name__ == '__main__':
    sys.exit(main())
