"""Tests of languages/python/link.py: `python3 -m unittest discover tests/languages/link`.

Components are written as text, assembled, linked, and executed before and after. Assembler and engine are packages of
PyPI, fetched once into .cache/link and checked by their digests; where they cannot be had, nothing is tested, loudly.
"""

import re
import subprocess
import sys
import unittest
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / '.cache' / 'link'
sys.path.insert(0, str(ROOT / 'languages' / 'python'))
sys.dont_write_bytecode = True

import component  # noqa: E402
import link  # noqa: E402
import wasm  # noqa: E402

# What the functions of libraries.wat give, by how they are called.
RESULTS = {
    'seven()': '7', 'hundred-and-one()': '101', 'address()': '-1', 'doubled(7)': '28', 'ten()': '10', 'three()': '3',
    'forty-two()': '42', 'branches(0)': '375', 'branches(1)': '275', 'branches(2)': '50', 'branches(9)': '-1',
    'pair(5)': '4', 'stack()': '65520', 'is-random()': 'true', 'variables()': '2',
}

# Modules that would be linked wrongly, and what is said of them.
REFUSED = {
    '(func $f) (start $f)': 'a module has a start function',
    '(memory 1) (memory 1)': 'the modules have more than one memory',
    '(memory 1 2 shared)': 'a table or memory has the flags 0x3: it is shared',
    '(memory i64 1)': 'a table or memory has the flags 0x4',
    '(table 1 externref)': 'a table is not of functions, but of the type 0x6f',
    '(table 1 funcref) (func $f) (elem (i32.const 1) $f)': 'elements are outside of their table',
    '(func $f) (elem declare func $f)': 'elements have the flags 3',
    '(func (result v128) (v128.const i64x2 0 0))': 'a value has the type 0x7b',
    '(func (drop (v128.const i64x2 0 0)))': 'a function has the instruction 0xfd',
    '(table 1 funcref) (func $f) (elem (i32.const 0) $f) (func (drop (ref.func $f)))':
        'a function takes a reference of a function',
    '(table $t 2 funcref) (func (table.copy (i32.const 0) (i32.const 1) (i32.const 1)))':
        'a function has the instruction 0xfc 14',
    '(tag (param i32))': 'a module has a section of the kind 13',
    '(type (struct))': 'a type is not of a function, but of the kind 0x5f',
    '(global (ref null func) (ref.null func))': 'a global has the type 0x70',
}


def setUpModule():
    """Fetches assembler and engine, unless they are there."""
    wanted = (HERE / 'requirements.txt').read_bytes()
    fetched = CACHE / 'requirements.txt'
    if not fetched.exists() or fetched.read_bytes() != wanted:
        CACHE.mkdir(parents=True, exist_ok=True)
        got = subprocess.run(
            [
                sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary', ':all:',
                '--require-hashes', '--dest', CACHE, '-r', HERE / 'requirements.txt',
            ],
            stderr=subprocess.PIPE,
        )
        if got.returncode != 0:
            print(f'\n*** SKIPPED: {got.stderr.decode()}\n*** link.py was NOT tested.\n', file=sys.stderr)
            raise unittest.SkipTest('assembler and engine cannot be fetched')
        for wheel in CACHE.glob('*.whl'):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(CACHE)
        fetched.write_bytes(wanted)
    for title in TOOLS:
        found = [path for path in CACHE.rglob(title) if path.is_file()]
        assert len(found) == 1, f'{title} is in no wheel, or in two: {found}'
        found[0].chmod(0o755)
        TOOLS[title] = found[0]


# Where assembler and engine are.
TOOLS = {'wasm-tools': None, 'wasmtime': None}


def tool(title, *arguments, **options):
    """Executes a tool, and returns what it writes."""
    return subprocess.run([TOOLS[title], *arguments], check=True, stdout=subprocess.PIPE, **options).stdout


def assemble(text):
    """Returns the component that a text describes."""
    return tool('wasm-tools', 'parse', '-', input=text.encode())


def modules(binary):
    """Returns the core modules of a component."""
    return [wasm.Module(body) for kind, body in wasm.sections(binary) if kind == component.CORE_MODULE]


class Linked(unittest.TestCase):
    """What comes of a component that is linked."""

    @classmethod
    def setUpClass(cls):
        """Links the component of libraries.wat."""
        cls.unlinked = CACHE / 'unlinked.wasm'
        cls.linked = CACHE / 'linked.wasm'
        cls.unlinked.write_bytes(assemble((HERE / 'libraries.wat').read_text()))
        cls.linked.write_bytes(link.link(cls.unlinked.read_bytes()))

    def call(self, component, call):
        """Calls a function of a component that has two environment variables."""
        return subprocess.run(
            [TOOLS['wasmtime'], 'run', '--env', 'A=b', '--env', 'C=d', '--invoke', call, component],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )

    def test_its_functions_give_what_they_gave_before(self):
        for call, result in RESULTS.items():
            for component in (self.unlinked, self.linked):
                with self.subTest(call=call, component=component.name):
                    self.assertEqual(self.call(component, call).stdout.strip(), result)

    def test_a_call_by_a_wrong_type_still_traps(self):
        for component in (self.unlinked, self.linked):
            with self.subTest(component=component.name):
                ended = self.call(component, 'trap()')
                self.assertNotEqual(ended.returncode, 0)
                self.assertIn('indirect call type mismatch', ended.stderr)

    def test_it_has_one_module_and_the_fix_up(self):
        self.assertEqual(len(modules(self.unlinked.read_bytes())), 4)
        linked, fixup = modules(self.linked.read_bytes())
        self.assertEqual([entry[1] for entry in fixup.imports], [b'$imports', b'0'])
        self.assertEqual(len(linked.imports), 1)

    def test_addresses_are_constants_and_elements_are_where_constants_say(self):
        linked = modules(self.linked.read_bytes())[0]
        self.assertEqual([entry[1] for entry in linked.elements], [[(0x41, 0)], [(0x41, 1)]])
        # The two that are set: the stack pointer, and where `realloc` goes on.
        self.assertEqual([one[2] for one in linked.globals], [[(0x41, 65536)], [(0x41, 70000)]])

    def test_what_nothing_reaches_is_left_out(self):
        before = sum(len(module.bodies) for module in modules(self.unlinked.read_bytes()))
        linked = modules(self.linked.read_bytes())[0]
        # `double`, which is called at its end at once, and the function that nothing calls.
        self.assertEqual(len(linked.bodies), before - 2)
        self.assertNotIn(b'offset', linked.exports)

    def test_functions_keep_their_names(self):
        self.assertLessEqual({b'one', b'twice'}, set(modules(self.linked.read_bytes())[0].names.values()))

    def test_it_is_valid_and_the_same_each_time(self):
        tool('wasm-tools', 'validate', self.linked)
        self.assertEqual(link.link(self.unlinked.read_bytes()), self.linked.read_bytes())

    def test_it_can_be_linked_once_more(self):
        again = CACHE / 'again.wasm'
        again.write_bytes(link.link(self.linked.read_bytes()))
        for call, result in RESULTS.items():
            with self.subTest(call=call):
                self.assertEqual(self.call(again, call).stdout.strip(), result)


class Careful(unittest.TestCase):
    """What must not be linked, or not be shortened."""

    def test_each_module_that_would_be_linked_wrongly_is_refused_by_what_it_has(self):
        for text, message in REFUSED.items():
            component = assemble(f'(component (core module $m {text}) (core instance (instantiate $m)))')
            with self.subTest(text=text), self.assertRaisesRegex(wasm.Unsupported, re.escape(message)):
                link.link(component)

    def test_a_core_module_is_no_component(self):
        with self.assertRaisesRegex(wasm.Unsupported, 'that is no component'):
            link.link(assemble('(module)'))

    def test_a_global_that_a_module_apart_uses_is_refused(self):
        component = assemble("""(component
          (import "a" (func $a (param "text" string)))
          (core module $m (memory (export "memory") 1) (global (export "g") i32 (i32.const 1)))
          (core module $apart (import "" "a" (func (param i32 i32))) (import "" "g" (global i32)))
          (core instance $i (instantiate $m))
          (core func $lowered (canon lower (func $a) (memory (core memory $i "memory"))))
          (core instance (instantiate $apart
            (with "" (instance (export "a" (func $lowered)) (export "g" (global $i "g"))))
          ))
        )""")
        with self.assertRaisesRegex(wasm.Unsupported, 'the global g is used by a module that stays apart'):
            link.link(component)

    def test_a_table_that_is_changed_is_asked_by_each_call(self):
        component = assemble("""(component
          (core module $m
            (type $t (func (result i32)))
            (table 2 funcref)
            (func $one (result i32) (i32.const 1))
            (func $two (result i32) (i32.const 2))
            (elem (i32.const 0) $one $two)
            (func $entry (result i32) (call_indirect (type $t) (i32.const 0)))
            (func (export "f") (result i32)
              (table.set 0 (i32.const 0) (table.get 0 (i32.const 1)))
              (call $entry))
          )
          (core instance $i (instantiate $m))
          (func (export "f") (result s32) (canon lift (core func $i "f")))
        )""")
        changed = CACHE / 'changed.wasm'
        changed.write_bytes(link.link(component))
        self.assertEqual(tool('wasmtime', 'run', '--invoke', 'f()', changed).strip(), b'2')


if __name__ == '__main__':
    unittest.main()
