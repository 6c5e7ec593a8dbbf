"""The command line: ``patchrank`` and ``python -m harness``; ``entry`` is the program."""
