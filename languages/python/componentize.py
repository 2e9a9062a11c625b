"""Runs componentize-py: `componentize.py [--reproducible] ARGUMENTS OF COMPONENTIZE-PY`.

While a component is made, the interpreter asks for randomness, above all for the seed by which it hashes texts, and for
the time. The order of everything in its memory follows from that. componentize-py has no option for it, and asks the C
library. With --reproducible this file replaces the functions of the C library, in this process only, by such that
answer with constants. A run asks its host, so of what a program sees only the hashes of texts follow from them.
"""

import ctypes
import mmap
import os
import platform
import sys

# Any eight bytes: others give other hashes of texts, and another digest.
RANDOM_BYTES = 0x72696E6766656E63

# Seconds since 1970.
TIME = 1640995200


def replace(name, *code):
    """Puts other machine code in place of a function of the C library, and returns nothing."""
    code = b''.join(bytes.fromhex(part) if isinstance(part, str) else part.to_bytes(8, 'little') for part in code)
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    KEPT.append(page)
    target = ctypes.addressof(ctypes.c_char.from_buffer(page))
    # mov rax, target; jmp rax
    jump = bytes.fromhex('48b8') + target.to_bytes(8, 'little') + bytes.fromhex('ffe0')
    address = address_of(name)
    first = address & -mmap.PAGESIZE
    length = address + len(jump) - first
    LIBRARY.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if LIBRARY.mprotect(first, length, 7) != 0:
        raise OSError('the C library cannot be changed in memory')
    ctypes.memmove(address, jump, len(jump))
    LIBRARY.mprotect(first, length, 5)


def address_of(name):
    """Returns where a function of the C library is."""
    return ctypes.cast(getattr(LIBRARY, name), ctypes.c_void_p).value


LIBRARY = ctypes.CDLL(None)
KEPT = []


def fix():
    """Replaces what makes one build differ from another."""
    if platform.machine() != 'x86_64' or sys.platform != 'linux':
        sys.exit('--reproducible works on Linux on x86-64 only')
    # getrandom(buffer, length, flags) fills the buffer: mov rax, RANDOM_BYTES; mov rcx, rsi; mov r8, rsi; jrcxz END;
    # NEXT: stosb; ror rax, 8; loop NEXT; END: mov rax, r8; ret
    replace('getrandom', '48b8', RANDOM_BYTES, '4889f1 4989f0 e307 aa 48c1c808 e2f9 4c89c0 c3')
    # clock_gettime(clock, time): mov rax, TIME; mov [rsi], rax; mov qword [rsi + 8], 0; xor eax, eax; ret
    replace('clock_gettime', '48b8', TIME, '488906 48c7460800000000 31c0 c3')
    # statx(folder, path, flags, mask, status) asks the system by syscall(332, ...), which is told by its return value
    # and errno, then sets the number and the device of the file to 0, and its four times to TIME:
    # push r8; mov r9, r8; mov r8, rcx; mov rcx, rdx; mov rdx, rsi; mov rsi, rdi; mov edi, 332; mov rax, syscall;
    # call rax; pop r8; test eax, eax; jnz END; xor ecx, ecx; mov [r8 + 32], rcx; mov [r8 + 136], rcx;
    # mov rdx, TIME; (mov [r8 + 64], rdx; mov [r8 + 72], rcx and so for 80, 96 and 112); END: ret
    times = ''.join(f'498950{at:02x} 498948{at + 8:02x}' for at in (64, 80, 96, 112))
    replace(
        'statx', '4150 4d89c1 4989c8 4889d1 4889f2 4889fe bf4c010000 48b8', address_of('syscall'), 'ffd0 4158 85c0 7537',
        '31c9 49894820 49898888000000 48ba', TIME, times, 'c3',
    )


if sys.argv[1] == '--reproducible':
    del sys.argv[1]
    fix()

# Imported late: it must not have asked before.
from componentize_py import script  # noqa: E402

script()
sys.stdout.flush()
# Without taking the interpreter down, since that frees the code that stands in place of the C library's.
os._exit(0)
