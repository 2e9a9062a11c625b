#!/usr/bin/env python3
"""Builds the runner of Python programs, a WebAssembly component: `build.py --out python.wasm`.

Needs Python 3.9 or later with `venv`, and a package index that pip can reach. Nothing else is installed, and the result
needs neither. The last line that is printed is the digest of the result.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import immortal
import link
import reproduce
import wasm

HERE = Path(__file__).resolve().parent

# The version of Python in the component, for which packages are chosen.
PYTHON = '3.14'

# How many builds a reproducible one is made of.
BUILDS = 3

# Names of files that are native code.
NATIVE = re.compile(r'\.(so|pyd|dll|dylib|a|o)(\.[0-9.]+)?$')


class BuildError(Exception):
    """Why nothing was built."""


def main():
    """Builds what the command line asks for, and returns the exit code."""
    options = parse()
    try:
        if options.work:
            work = Path(options.work).resolve()
            work.mkdir(parents=True, exist_ok=True)
            digest = build(options, work)
        else:
            with tempfile.TemporaryDirectory(prefix='ringfence-python-') as folder:
                digest = build(options, Path(folder))
    except BuildError as error:
        print(f'build.py: {error}', file=sys.stderr)
        return 1
    print(f'sha256:{digest}')
    return 0


def parse():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Build the runner of Python programs.')
    parser.add_argument('--out', metavar='FILE', required=True, help='where to write the component')
    parser.add_argument('--work', metavar='DIR', help='a folder for tools and packages, kept for the next build')
    parser.add_argument(
        '--with', metavar='NAME==VERSION', dest='packages', action='append', default=[],
        help='bake in a package of pure Python, and what it depends on; may be repeated',
    )
    parser.add_argument(
        '--import', metavar='NAME', dest='imports', action='append', default=[],
        help='import a module when the component is built, so that it costs a program nothing; may be repeated',
    )
    parser.add_argument(
        '--require-hashes', metavar='FILE',
        help='bake in the packages of this requirements file, each by the digest that stands there, and no others',
    )
    parser.add_argument(
        '--reproducible', action='store_true',
        help='build the same bytes on every machine (Linux on x86-64), with the seed of hashes that everybody knows; '
        'takes three times as long',
    )
    options = parser.parse_args()
    for package in options.packages:
        if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9.!+_-]+', package):
            parser.error(f'--with {package!r}: a package is given as NAME==VERSION, with its exact version')
    for name in options.imports:
        if not re.fullmatch(r'[^\W\d]\w*(\.[^\W\d]\w*)*', name):
            parser.error(f'--import {name!r}: that is no name of a module')
    return options


def build(options, work):
    """Builds the component in a folder, moves it to where it is asked for, and returns its digest."""
    out = Path(options.out).resolve()
    if not out.parent.is_dir():
        raise BuildError(f'--out {options.out}: there is no folder {out.parent}')
    python = install_tools(work / 'tools')
    packages = fresh_folder(work / 'packages')
    if options.packages or options.require_hashes:
        for wheel in download(python, options, fresh_folder(work / 'wheels')):
            unpack(wheel, packages)
    source = fresh_folder(work / 'source')
    runner = fresh_folder(source / 'ringfence_runner')
    for file in sorted((HERE / 'src' / 'ringfence_runner').glob('*.py')):
        shutil.copyfile(file, runner / file.name)
    (runner / 'baked_imports.py').write_text(
        f'"""What build.py was asked to import, too."""\n\nIMPORTS = {options.imports!r}\n', encoding='utf-8'
    )
    made = [
        componentize(python, work, source, packages, work / f'runner{number}.wasm', options.reproducible)
        for number in range(BUILDS if options.reproducible else 1)
    ]
    try:
        component = reproduce.merge(made) if options.reproducible else made[0]
    except reproduce.NotReproducible as error:
        raise BuildError(f'--reproducible: {error}') from None
    try:
        component = link.link(immortal.immortalise(component))
    except immortal.Unexpected as error:
        raise BuildError(f'the objects of the interpreter cannot be made immortal: {error}') from None
    except wasm.Unsupported as error:
        raise BuildError(f'the modules of the component cannot be linked: {error}') from None
    Path(f'{out}.part').write_bytes(component)
    os.replace(f'{out}.part', out)
    return hashlib.sha256(component).hexdigest()


def install_tools(folder):
    """Installs the pinned tools in an environment of their own, and returns its interpreter."""
    python = folder / 'bin' / 'python'
    pins = HERE / 'requirements.txt'
    installed = folder / 'requirements.txt'
    if installed.exists() and installed.read_bytes() == pins.read_bytes():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    made = run([sys.executable, '-m', 'venv', folder])
    if made.returncode != 0:
        raise BuildError(
            f'cannot make an environment for the tools:\n{said(made)}\n'
            'Where ensurepip is missing, install it: apt-get install python3-venv'
        )
    made = run([python, '-m', 'pip', *PIP, 'install', '--require-hashes', '--only-binary', ':all:', '-r', pins])
    if made.returncode != 0:
        raise BuildError(f'cannot install the tools of {pins}:\n{said(made)}')
    shutil.copyfile(pins, installed)
    return python


def download(python, options, folder):
    """Fetches the wheels that were asked for, and returns them in a fixed order."""
    only_pure = ['--only-binary', ':all:', '--platform', 'any', '--implementation', 'py', '--abi', 'none']
    command = [python, '-m', 'pip', *PIP, 'download', *only_pure, '--python-version', PYTHON, '--dest', folder]
    if options.require_hashes:
        command += ['--require-hashes', '-r', Path(options.require_hashes).resolve()]
    fetched = run([*command, *options.packages])
    if fetched.returncode != 0:
        raise BuildError(f'cannot fetch the packages:\n{said(fetched)}{hint(said(fetched))}')
    wheels = sorted(folder.iterdir())
    for wheel in wheels:
        check_pure(wheel)
        name, version = wheel.name.split('-')[:2]
        print(f'{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}')
    return wheels


def hint(text):
    """Explains what pip says where it finds a package but no wheel of it that can be baked in."""
    found = re.search(r'requirement (\S+).*\(from versions: none\)', text)
    if found is None:
        return ''
    return (
        f'\n{found[1]} has no wheel of pure Python (py3-none-any) for Python {PYTHON}. Packages with native code cannot '
        'be baked in, nor can those that are published as sources only'
    )


def check_pure(wheel):
    """Refuses a wheel that is not of pure Python, by its name and by what it holds."""
    tags = wheel.stem.split('-')[-3:]
    is_pure = wheel.suffix == '.whl' and len(tags) == 3 and tags[1:] == ['none', 'any']
    if not is_pure or not any(tag.startswith('py3') for tag in tags[0].split('.')):
        raise BuildError(f'{wheel.name} is no wheel of pure Python for Python 3 (py3-none-any)')
    with zipfile.ZipFile(wheel) as archive:
        native = [name for name in archive.namelist() if NATIVE.search(name)]
    if native:
        raise BuildError(f'{wheel.name} has native code, which cannot be baked in: {native[0]} and {len(native) - 1} more')


def unpack(wheel, folder):
    """Unpacks the modules of a wheel, and leaves out its scripts and headers."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            parts = name.split('/')
            if parts[0].endswith('.data'):
                if len(parts) < 3 or parts[1] not in ('purelib', 'platlib'):
                    continue
                parts = parts[2:]
            if name.endswith('/') or '..' in parts or not all(parts):
                continue
            target = folder.joinpath(*parts)
            if target.exists() and not parts[0].endswith('.dist-info'):
                raise BuildError(f'{wheel.name} and another package both have {"/".join(parts)}')
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def componentize(python, work, source, packages, out, is_reproducible):
    """Makes and returns the component: its interpreter starts, imports `ringfence_runner`, and its memory is kept."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    # componentize-py would add the packages of the machine's own Python otherwise.
    environment['VIRTUAL_ENV'] = str(fresh_folder(work / 'nothing'))
    environment['PYTHONDONTWRITEBYTECODE'] = '1'
    # The interpreter in the component keeps what it compiles, and finds it in the next build.
    shutil.rmtree(source / 'ringfence_runner' / '__pycache__', ignore_errors=True)
    made = run(
        [
            python, HERE / 'componentize.py', *(['--reproducible'] if is_reproducible else []), '--wit-path', HERE / 'wit',
            '--world', 'runner', 'componentize', 'ringfence_runner', '--python-path', source, '--python-path', packages,
            '--output', out,
        ],
        env=environment,
    )
    if made.returncode != 0:
        raise BuildError(f'componentize-py failed:\n{said(made)}')
    return out.read_bytes()


# Nothing of the user's own settings of pip but where its index is.
PIP = ['--quiet', '--disable-pip-version-check', '--no-input']


def run(command, **options):
    """Runs a command, and returns how it ended and what it said."""
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def said(ended):
    """Returns the last lines of what a command said, without the frames of its own code."""
    text = ended.stdout.decode('utf-8', 'replace').partition('\nStack backtrace:')[0]
    lines = text.strip().splitlines()
    return '\n'.join(lines[-30:])


def fresh_folder(folder):
    """Makes an empty folder, in place of one that a build before has left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == '__main__':
    sys.exit(main())
