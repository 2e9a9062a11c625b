"""A component whose run executes the Python program that stdin has, with libraries that were imported at build time."""

import json
import math
import re
import statistics
import sys
import traceback

from componentize_py_types import Err
from wit_world import exports

LIBRARIES = {"json": json, "math": math, "re": re, "statistics": statistics}


class Run(exports.Run):
    def run(self) -> None:
        try:
            exec(compile(sys.stdin.read(), "program", "exec"), {"__name__": "__main__"} | LIBRARIES)
        except Exception:
            traceback.print_exc()
            raise Err(None)
