"""Run another program with our models known: `python -m retnet.hf lm_eval --model hf ...`."""

import runpy
import sys
from importlib import metadata
from importlib.util import find_spec

USAGE = """usage: python -m retnet.hf PROGRAM [...]

Run a program that loads models with transformers, such as lm_eval, with ours known to it.
PROGRAM is a command that pip installed, a module, or a .py file; all that follows is its own.

  python -m retnet.hf lm_eval --model hf --model_args pretrained=runs/demo --tasks lambada_openai
"""


def main(words: list[str]) -> int:
    """Run `words[0]` with the arguments `words[1:]`, and return its exit status."""
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    import retnet.hf  # noqa: F401  (it registers our classes)

    name = words[0]
    sys.argv = words
    scripts = [e for e in metadata.entry_points(group="console_scripts") if e.name == name]
    if scripts:
        return scripts[0].load()() or 0
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    elif find_spec(name.partition(".")[0]):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.stderr.write(f'error: "{name}" is no command, module or .py file here; install it\n')
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
