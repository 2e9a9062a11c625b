"""The files in baked packages, as `importlib.resources` and `importlib.metadata` show them."""

import io
import re
from importlib.metadata import Distribution
from importlib.resources.abc import Traversable, TraversableResources


class BakedReader(TraversableResources):
    """The files of one baked package."""

    def __init__(self, importer, folder):
        self.root = BakedFile(importer, folder)

    def files(self):
        """Returns the folder of the package."""
        return self.root


class BakedFile(Traversable):
    """A file or a folder of a baked package."""

    def __init__(self, importer, path):
        self.importer = importer
        self.path = path

    @property
    def name(self):
        """The last part of the path."""
        return self.path.rpartition('/')[2]

    def __str__(self):
        return self.path

    def iterdir(self):
        """Yields what lies in this folder."""
        prefix = self.path + '/'
        paths = [*self.importer.data, *(module.file for module in self.importer.modules.values())]
        for name in sorted({path[len(prefix):].partition('/')[0] for path in paths if path.startswith(prefix)}):
            yield BakedFile(self.importer, prefix + name)

    def is_file(self):
        """Tells whether this is a file that was kept."""
        return self.path in self.importer.data

    def is_dir(self):
        """Tells whether anything lies below this."""
        return next(self.iterdir(), None) is not None

    def joinpath(self, *parts):
        """Returns the file or folder at a path below this one."""
        return BakedFile(self.importer, '/'.join([self.path, *map(str, parts)]))

    __truediv__ = joinpath

    def open(self, mode='r', *args, **kwargs):
        """Opens this file for reading, as text or as bytes."""
        file = io.BytesIO(self.importer.get_data(self.path))
        return file if 'b' in mode else io.TextIOWrapper(file, *args, **kwargs)

    def read_bytes(self):
        """Returns the bytes of this file."""
        return self.importer.get_data(self.path)

    def read_text(self, encoding='utf-8', errors='strict'):
        """Returns the text of this file."""
        return self.read_bytes().decode(encoding, errors)


class BakedDistribution(Distribution):
    """What a baked package says of itself."""

    def __init__(self, importer, folder):
        self.importer = importer
        self.folder = folder

    def read_text(self, filename):
        """Returns the text of a file of the package's metadata, or None."""
        path = f'{self.folder}/{filename}'
        return self.importer.get_data(path).decode() if path in self.importer.data else None

    def locate_file(self, path):
        """Returns a file of the package by its path in the wheel."""
        return BakedFile(self.importer, self.folder.rpartition('/')[0]).joinpath(path)


def find_distributions(importer, context):
    """Yields the baked packages of the name that is looked for, or all of them."""
    def plain(name):
        return re.sub(r'[-_.]+', '-', name).lower()

    for path in importer.data:
        folder, _, file = path.rpartition('/')
        if file == 'METADATA' and folder.endswith('.dist-info'):
            name = folder.rpartition('/')[2].partition('-')[0]
            if context.name is None or plain(name) == plain(context.name):
                yield BakedDistribution(importer, folder)
