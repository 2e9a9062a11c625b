"""Reads a component, and writes it anew around a module that its core modules were linked to.

Of a component this knows what is between core modules: instances, aliases, canonical functions. All else stays as it is,
and in its order, so that its indices stay the same.

What defines a core function, table, memory or global is called its source here: a canonical function, or an instance of
a module and the name of an export.
"""

import wasm
from wasm import FUNCTION, GLOBAL, MEMORY, TABLE, Unsupported, name, number, read_name, read_number, section, vector

# The sections of a component that matter here, by their numbers.
CUSTOM, CORE_MODULE, CORE_INSTANCE, ALIAS, CANON = 0, 1, 2, 6, 8
# Those that name nothing of core modules: components, instances, types, imports, exports.
OTHERS = (4, 5, 7, 10, 11)

# The first eight bytes of a component.
MAGIC = b'\0asm\x0d\0\x01\0'

# Options of canonical functions that are followed by a core index: of a memory, of functions.
OPTION_MEMORY, OPTION_FUNCTIONS = 3, (4, 5, 7)


class Instance:
    """A core instance of a component: of a module, or a list of exports."""

    def __init__(self, module=None, arguments=None, exports=None):
        """Creates an instance as the component defines it."""
        self.module, self.arguments, self.exports = module, arguments, exports
        # Of an instance that is merged: what it has under each kind and index, its types, what it exports under which
        # name, and where its data begins in that of the linked module.
        self.spaces = self.types = self.names = None
        self.first_data = 0


class Canon:
    """A canonical function: a function of a component made one of a module (`is_core`), or the other way round."""

    def __init__(self, parts, is_core):
        """Creates a canonical function of its parts: bytes, and core things that it names as (kind, source)."""
        self.parts, self.is_core = parts, is_core

    def needs_an_instance(self):
        """Tells whether it uses a memory or a function of a core instance."""
        return any(isinstance(part, tuple) for part in self.parts)


class Component:
    """A component, read: its core definitions by index, and everything in its order."""

    def __init__(self, binary):
        """Reads a component."""
        if binary[:8] != MAGIC:
            raise Unsupported('that is no component')
        self.modules, self.instances = [], []
        # What defines each core function, table, memory and global.
        self.spaces = {FUNCTION: [], TABLE: [], MEMORY: [], GLOBAL: []}
        # Sections as they are, canonical functions, and numbers of modules.
        self.items = []
        for kind, body in wasm.sections(binary):
            if kind == CORE_MODULE:
                self.items.append(len(self.modules))
                self.modules.append(bytes(body))
            elif kind == CORE_INSTANCE:
                self._read_each(body, self._read_instance)
            elif kind == ALIAS:
                self._read_each(body, self._read_alias)
            elif kind == CANON:
                self._read_each(body, self._read_canon)
            elif kind in OTHERS:
                self.items.append(section(kind, body))
            elif kind != CUSTOM:
                raise Unsupported(f'the component has a section of the kind {kind}')

    def _read_each(self, body, read):
        count, at = read_number(body, 0)
        for _ in range(count):
            at = read(body, at)

    def _read_instance(self, body, at):
        is_list = body[at]
        at += 1
        entries = {}
        module = None
        if not is_list:
            module, at = read_number(body, at)
        count, at = read_number(body, at)
        for _ in range(count):
            title, at = read_name(body, at)
            kind = body[at]
            index, at = read_number(body, at + 1)
            if is_list and kind not in self.spaces:
                raise Unsupported(f'a core instance exports what is of the kind {kind:#x}')
            entries[title] = self.spaces[kind][index] if is_list else self.instances[index]
        self.instances.append(Instance(exports=entries) if is_list else Instance(module, entries))
        return at

    def _read_alias(self, body, at):
        start = at
        kind = body[at]
        core_kind = None
        at += 1
        if kind == 0:
            core_kind = body[at]
            at += 1
        target = body[at]
        first, at = read_number(body, at + 1)
        if target == 2:
            _, at = read_number(body, at)
        else:
            title, at = read_name(body, at)
        if core_kind is None:
            self.items.append(section(ALIAS, vector([body[start:at]])))
        elif target == 1 and core_kind in self.spaces:
            self.spaces[core_kind].append(self.resolve(self.instances[first], title))
        else:
            raise Unsupported(f'the component has an alias of the core kind {core_kind:#x}')
        return at

    def resolve(self, instance, title):
        """Returns what a core instance exports: what a list names, or the export of an instance of a module."""
        if instance.exports is None:
            return (instance, title)
        return instance.exports[title]

    def _read_canon(self, body, at):
        start = at
        opcode = body[at]
        if opcode in (2, 3, 4):
            _, at = read_number(body, at + 1)
            canon = Canon([bytes(body[start:at])], True)
        elif opcode in (0, 1) and body[at + 1] == 0:
            parts = [bytes(body[at:at + 2])]
            index, at = read_number(body, at + 2)
            parts.append((FUNCTION, self.spaces[FUNCTION][index]) if opcode == 0 else number(index))
            at = self._read_options(body, at, parts)
            if opcode == 0:
                end = read_number(body, at)[1]
                parts.append(bytes(body[at:end]))
                at = end
            canon = Canon(parts, opcode == 1)
        else:
            raise Unsupported(f'the component has a canonical function of the kind {opcode:#x}')
        self.items.append(canon)
        if canon.is_core:
            self.spaces[FUNCTION].append(canon)
        return at

    def _read_options(self, body, at, parts):
        count, at = read_number(body, at)
        parts.append(number(count))
        for _ in range(count):
            option = body[at]
            parts.append(bytes([option]))
            at += 1
            if option == OPTION_MEMORY or option in OPTION_FUNCTIONS:
                kind = MEMORY if option == OPTION_MEMORY else FUNCTION
                index, at = read_number(body, at)
                parts.append((kind, self.spaces[kind][index]))
            elif option > 2:
                raise Unsupported(f'a canonical function has the option {option}')
        return at

    def uses_from_outside(self):
        """Yields what is used by canonical functions and by instances that are not merged, as (kind, source)."""
        for item in self.items:
            if isinstance(item, Canon):
                yield from (part for part in item.parts if isinstance(part, tuple))
        for instance in self.instances:
            if instance.module is not None and instance.spaces is None:
                for module, title, kind, _ in wasm.Module(self.modules[instance.module]).imports:
                    yield kind, self.resolve(instance.arguments[module], title)


class Writer:
    """Writes a component anew, around the linked module."""

    def __init__(self, component, merged):
        """Creates a writer that has written nothing."""
        self.component, self.merged = component, merged
        self.result = [MAGIC]
        # The new core indices of what is written, and how many of each kind there are.
        self.indices = {}
        self.counts = {FUNCTION: 0, TABLE: 0, MEMORY: 0, GLOBAL: 0, 'module': 0, 'instance': 0}
        self.module_numbers = {}
        self.imported = []

    def write(self):
        """Returns the component as bytes."""
        for kind, source in self.component.uses_from_outside():
            self.merged.export(kind, source)
        linked, self.imported = self.merged.write()
        kept = {one.module for one in self.component.instances if one.module is not None and one.spaces is None}
        used = {one.source for one in self.imported}
        used.update(source for _, source in self.component.uses_from_outside() if isinstance(source, Canon))
        is_linked_written = False
        for item in self.component.items:
            if isinstance(item, bytes):
                self.result.append(item)
            elif isinstance(item, Canon):
                if not item.is_core or item in used:
                    self._write_canon(item)
            else:
                if not is_linked_written:
                    self._add(CORE_MODULE, 'module', linked)
                    is_linked_written = True
                if item in kept:
                    self.module_numbers[item] = self._add(CORE_MODULE, 'module', self.component.modules[item])
        for instance in self.component.instances:
            if instance.module in kept and instance.spaces is None:
                self._instance(instance)
        return b''.join(self.result)

    def _add(self, kind, counted, body):
        """Writes a definition in a section of its own, and returns its index."""
        self.result.append(section(kind, body if kind == CORE_MODULE else vector([body])))
        index = self.counts.get(counted)
        if index is not None:
            self.counts[counted] += 1
        return index

    def _write_canon(self, canon):
        body = b''.join(part if isinstance(part, bytes) else number(self._index(*part)) for part in canon.parts)
        self.indices[canon] = self._add(CANON, FUNCTION if canon.is_core else None, body)

    def _index(self, kind, source):
        """Returns the core index of something, which is written if it is an export that nobody has used yet."""
        if isinstance(source, Canon):
            if source not in self.indices:
                raise Unsupported('a module imports a canonical function that is defined after its use')
            return self.indices[source]
        instance, title = source
        if instance.spaces is None:
            at = self._instance(instance)
        else:
            at, title = self._linked(), self.merged.export_names[source]
        key = (at, title)
        if key not in self.indices:
            self.indices[key] = self._add(ALIAS, kind, bytes([0, kind, 1]) + number(at) + name(title))
        return self.indices[key]

    def _linked(self):
        """Returns the index of the linked instance, which is written when it is needed first."""
        if self.merged not in self.indices:
            arguments = [(number_text(one.number), FUNCTION, one.source) for one in self.imported]
            self.indices[self.merged] = self._instantiate(0, {b'import': arguments} if arguments else {})
        return self.indices[self.merged]

    def _instance(self, instance):
        """Returns the index of an instance that is not merged, which is written when it is needed first."""
        if instance not in self.indices:
            arguments = {}
            for module, title, kind, _ in wasm.Module(self.component.modules[instance.module]).imports:
                source = self.component.resolve(instance.arguments[module], title)
                arguments.setdefault(module, []).append((title, kind, source))
            self.indices[instance] = self._instantiate(self.module_numbers[instance.module], arguments)
        return self.indices[instance]

    def _instantiate(self, module, arguments):
        """Writes an instance of a module, and a list of exports for each name that it imports from."""
        given = []
        for title, entries in arguments.items():
            exports = [name(field) + bytes([kind]) + number(self._index(kind, source)) for field, kind, source in entries]
            given.append(name(title) + b'\x12' + number(self._add(CORE_INSTANCE, 'instance', b'\x01' + vector(exports))))
        return self._add(CORE_INSTANCE, 'instance', b'\0' + number(module) + vector(given))


def number_text(value):
    """Returns a number as the bytes of its digits."""
    return str(value).encode()
