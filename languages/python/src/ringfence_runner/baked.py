"""The modules that the build bakes into the component, and the importer that finds them at run time.

No file system holds the standard library when a program runs. The build therefore compiles every module of it, and
keeps code and source compressed in memory, where a module that nobody imports costs nothing.
"""

import marshal
import os
import sys
import zlib
from importlib import _bootstrap_external
from importlib.machinery import ModuleSpec

from . import scrub

# What is no library but a program of its own, or installs packages, which nothing here can do.
LEFT_OUT = {
    'config-3.14-wasm32-wasi', 'ensurepip', 'idlelib', 'site-packages', 'test', 'turtledemo',
    'venv', '__pycache__',
}


class BakedModule:
    """A module as it is kept: where its file was, whether it is a package, its code and its source."""

    __slots__ = ('code', 'file', 'is_package', 'source')

    def __init__(self, file, is_package, source):
        self.file = file
        self.is_package = is_package
        self.code = zlib.compress(marshal.dumps(compile(source, file, 'exec', dont_inherit=True)), 9)
        self.source = zlib.compress(source, 9)


class BakedImporter:
    """Finds and loads baked modules, and gives their sources to tracebacks and `inspect`."""

    def __init__(self, paths):
        """Compiles the modules among the files of the build, and keeps the others."""
        self.modules = {}
        self.data = {}
        for path in paths:
            content = read_file(path)
            *package, entry = path.split('/')[2:]
            if not entry.endswith('.py'):
                self.data[path] = zlib.compress(content, 9)
            elif entry == '__init__.py':
                self.modules['.'.join(package)] = BakedModule(path, True, content)
            else:
                self.modules['.'.join([*package, entry[:-3]])] = BakedModule(path, False, content)
        for path in paths:
            self._add_packages_without_file(path)

    def _add_packages_without_file(self, path):
        folder, *package = path.rsplit('/', 1)[0].split('/')[1:]
        for depth in range(1, len(package) + 1):
            name = '.'.join(package[:depth])
            if name not in self.modules and package[depth - 1].isidentifier():
                place = '/'.join(['', folder, *package[:depth], '__init__.py'])
                self.modules[name] = BakedModule(place, True, b'')

    def adopt(self, module):
        """Becomes the loader of a module that was imported from its file before this importer was there."""
        spec = self.find_spec(module.__name__)
        if spec is not None and module.__spec__ is not None and module.__spec__.origin == spec.origin:
            module.__spec__, module.__loader__ = spec, self
            module.__dict__.pop('__cached__', None)

    def find_spec(self, name, path=None, target=None):
        """Returns the spec of a baked module, or None."""
        baked = self.modules.get(name)
        if baked is None:
            return None
        spec = ModuleSpec(name, self, origin=baked.file, is_package=baked.is_package)
        spec.has_location = True
        if baked.is_package:
            spec.submodule_search_locations.append(baked.file.rpartition('/')[0])
        return spec

    def create_module(self, spec):
        """Leaves it to the import system to make the module."""
        return None

    # Executes a module. Tracebacks leave the frames of `importlib` out, and would show one of this file.
    exec_module = _bootstrap_external._LoaderBasics.exec_module

    def get_code(self, name):
        """Returns the code of a module, as `runpy` asks for it."""
        return marshal.loads(zlib.decompress(self._baked(name).code))

    def get_source(self, name):
        """Returns the text of a module, for tracebacks and `inspect.getsource`."""
        from importlib.util import decode_source
        return decode_source(zlib.decompress(self._baked(name).source))

    def get_filename(self, name):
        """Returns where the file of a module was when the component was built."""
        return self._baked(name).file

    def is_package(self, name):
        """Tells whether a module is a package."""
        return self._baked(name).is_package

    def get_data(self, path):
        """Returns the bytes of a file that lies in a baked package, for `pkgutil.get_data`."""
        data = self.data.get(path)
        if data is None:
            raise FileNotFoundError(44, os.strerror(44), path)
        return zlib.decompress(data)

    def get_resource_reader(self, name):
        """Returns the reader of files that lie in a baked package, for `importlib.resources`."""
        from .resources import BakedReader
        return BakedReader(self, self._baked(name).file.rpartition('/')[0])

    def find_distributions(self, context):
        """Yields what is known of the baked packages, for `importlib.metadata`."""
        from .resources import find_distributions
        return find_distributions(self, context)

    def _baked(self, name):
        baked = self.modules.get(name)
        if baked is None:
            raise ImportError(f'no module named {name!r} is baked in', name=name)
        return baked


def install():
    """Bakes what the build has, and lets all further imports come from memory."""
    paths = find_files('/python', '/0', '/1')
    sys.path_importer_cache.clear()
    scrub.scrub()
    importer = BakedImporter(paths)
    for module in list(sys.modules.values()):
        importer.adopt(module)
    sys.meta_path.insert(0, importer)
    sys.path.clear()


def find_files(library, *folders):
    """Returns the paths of the modules of the standard library, and of all files below other folders."""
    paths = []
    for entry in sorted(os.listdir(library)):
        if entry not in LEFT_OUT:
            find_below(f'{library}/{entry}', paths)
    paths = [path for path in paths if path.endswith('.py')]
    for folder in folders:
        find_below(folder, paths)
    return paths


def find_below(path, paths):
    """Adds the path of a file, or of all files below a folder."""
    try:
        entries = sorted(os.listdir(path))
    except NotADirectoryError:
        paths.append(path)
        return
    for entry in entries:
        if entry != '__pycache__':
            find_below(f'{path}/{entry}', paths)


def read_file(path):
    """Returns the bytes of a file, without the objects of a stream."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
        return b''.join(pieces)
    finally:
        os.close(descriptor)
