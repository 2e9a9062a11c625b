"""Checks that settings have the languages of an image as the image itself has them, but for the digests.

usage: same_languages.py SETTINGS.toml IMAGE.toml
"""

import sys
import tomllib
from pathlib import Path


def languages(path):
    tables = tomllib.loads(Path(path).read_text())["languages"]
    return {name: {key: value for key, value in table.items() if key != "digest"} for name, table in tables.items()}


def main(settings, image):
    ours, theirs = languages(settings), languages(image)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            print(f"  languages.{name}: {ours.get(name)} in {settings}, {theirs.get(name)} in {image}", file=sys.stderr)
    return 0 if ours == theirs else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
