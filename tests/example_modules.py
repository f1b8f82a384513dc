"""Scripts of `examples/` as modules of the process that tests them."""

import contextlib
import importlib
import pathlib
import sys

from absl import flags

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@contextlib.contextmanager
def example(name):
    """The module of a script, for a while: all that a process imports share one set of flags."""
    known = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))
        here = {path.stem for path in EXAMPLES.glob("*.py")}
        gone = (set(sys.modules) - known) & here
        for flag in list(flags.FLAGS):
            if flags.FLAGS.find_module_defining_flag(flag) in gone:
                delattr(flags.FLAGS, flag)
        for module in gone:
            del sys.modules[module]
