"""A program in another process, whose sets and dictionaries are hashed otherwise."""

import os
import subprocess
import sys


def said(program: str, *arguments: object, hash_seed: str) -> str:
    """Run Python source with arguments under that PYTHONHASHSEED, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
