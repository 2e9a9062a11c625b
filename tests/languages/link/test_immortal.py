"""Tests of languages/python/immortal.py, on memory that is made by hand."""

import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / 'languages' / 'python'))
sys.dont_write_bytecode = True

import immortal  # noqa: E402
import wasm  # noqa: E402

# Where things are in memory: `type`, a type, a metaclass, a type of that one, and objects of each.
TYPE, PLAIN, META, OF_META = 0x100, 0x180, 0x400, 0x480
OBJECTS = {0x200: (3, PLAIN), 0x210: (1, OF_META), PLAIN: (9, TYPE), META: (2, TYPE), OF_META: (4, META)}
# What is listed and is no object any more: freed, freed as the last one, no type, a type that is out of memory, and one
# whose own type only looks like a type of types.
GONE = {0x220: (0x400000, PLAIN), 0x228: (0, PLAIN), 0x230: (1, 0x200), 0x238: (1, 0x7FFFFFF0), 0x240: (1, 0x500)}
NOT_LISTED = {0x300: (5, PLAIN), 0x500: (1, 0x580), 0x580: (1, PLAIN)}
LIST = 0x800
STACK = 0x80


def memory():
    """Returns memory with objects and a list of them."""
    result = bytearray(0x1000)
    struct.pack_into('<II', result, TYPE, 7, TYPE)
    for address in (TYPE, META, 0x580):
        result[address + 87] = 0x80
    for address, header in {**OBJECTS, **GONE, **NOT_LISTED}.items():
        struct.pack_into('<II', result, address, *header)
    listed = [*OBJECTS, *GONE]
    for address in listed:
        result[LIST + immortal.HEADER + address // 64] |= 1 << address // 8 % 8
    struct.pack_into('<16sII', result, LIST, immortal.MAGIC, TYPE, len(listed))
    # The bytes that the magic was made of, as they are left in freed memory.
    result[0x700:0x710] = immortal.MAGIC
    # Something far away, which becomes a segment of its own.
    result[-1] = 1
    return result


def component(content, stack=b'__stack_pointer'):
    """Returns a component of one module with a memory that has this content, and a stack below STACK."""
    module = b'\0asm\x01\0\0\0' + b''.join(wasm.section(kind, body) for kind, body in (
        (wasm.MEMORIES, b'\1\0\1'),
        (wasm.GLOBALS, b'\1\x7f\1\x41' + wasm.signed(STACK) + b'\x0b'),
        (wasm.EXPORTS, wasm.vector([wasm.name(stack) + b'\3\0'])),
        (wasm.DATA_COUNT, b'\1'),
        (wasm.DATA, wasm.vector([b'\0\x41\0\x0b' + wasm.number(len(content)) + content])),
    ))
    return b'\0asm\x0d\0\1\0' + wasm.section(1, module)


def counts(content, addresses):
    """Returns the counts of references of objects."""
    return [struct.unpack_from('<I', content, address)[0] for address in addresses]


class Immortal(unittest.TestCase):
    """What becomes of memory."""

    def setUp(self):
        """Changes a memory."""
        self.memory = memory()
        immortal.change_memory(self.memory)

    def test_listed_objects_are_immortal(self):
        self.assertEqual(set(counts(self.memory, OBJECTS)), {5 << 28})

    def test_what_is_gone_or_not_listed_stays_as_it_is(self):
        left = {**GONE, **NOT_LISTED}
        self.assertEqual(counts(self.memory, left), [count for count, _ in left.values()])

    def test_nothing_else_changes_and_the_list_is_cleared(self):
        expected = memory()
        for address in OBJECTS:
            struct.pack_into('<I', expected, address, 5 << 28)
        expected[LIST:-1] = bytes(len(expected) - LIST - 1)
        self.assertEqual(self.memory, expected)

    def test_a_component_has_the_memory_in_as_many_segments_as_it_says_and_a_clean_stack(self):
        before = memory()
        before[0x10:0x20] = b'left by a call  '
        changed = immortal.immortalise(component(bytes(before)))
        (_, module), = wasm.sections(changed)
        parts = dict(wasm.sections(module))
        self.assertEqual(immortal.image(parts[wasm.DATA]), self.memory)
        self.assertEqual(parts[wasm.DATA_COUNT], parts[wasm.DATA][:1])

    def test_a_component_that_does_not_say_where_its_stack_is_is_refused(self):
        with self.assertRaisesRegex(immortal.Unexpected, 'where its stack is'):
            immortal.immortalise(component(bytes(memory()), stack=b'another'))

    def test_a_component_without_a_list_is_refused(self):
        for content in (b'nothing', immortal.MAGIC + bytes(100)):
            with self.subTest(content=content), self.assertRaisesRegex(immortal.Unexpected, 'list of'):
                immortal.immortalise(component(content))


if __name__ == '__main__':
    unittest.main()
