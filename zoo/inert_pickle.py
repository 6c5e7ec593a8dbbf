"""Pickles as data: what a pickle says, without doing any of it.

Python's unpickler imports and calls whatever a file names. Here names stay names, calls stay
records of a call, and objects are the state that they were to be given; nothing is imported and
nothing is called.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that the pickle names, as ``module name``."""

    text: str


@dataclass(frozen=True, eq=False)
class Call:
    """A call that the pickle asks for, not made."""

    of: Name
    args: tuple[Any, ...]


@dataclass(eq=False)
class Instance:
    """An object that the pickle asks for: its class, and the state that it was to have."""

    of: Name
    state: Any = None


@dataclass(frozen=True, eq=False)
class Outside:
    """What the pickle says about something that is stored elsewhere."""

    facts: tuple[Any, ...]


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def parse(pickle: bytes, allowed: Callable[[str], bool]) -> Any:
    """Return what a pickle says.

    Understood are the instructions that TorchScript's pickler writes (torch/csrc/jit/serialization/
    pickler.cpp), a small part of Python's.

    Args:
        pickle: its bytes.
        allowed: tells of ``module name`` whether it may be there.

    Raises:
        ValueError: a name that isn't allowed, another instruction, or a damaged pickle; the message
            goes behind the file's name.
    """
    machine = _Machine(allowed)
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except _RefusedError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"has a damaged pickle ({error}); get the file again") from error
    raise ValueError("has a pickle without an end; get the file again")


class _RefusedError(ValueError):
    """A pickle that says something other than tensors."""


class _Machine:
    """The stack and the memory of a pickle that is read."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self.allowed = allowed
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def pop(self) -> Any:
        """Take the top of the stack, which must be a value."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def since_mark(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def step(self, opcode: str, argument: Any) -> None:
        """Follow one instruction."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _TUPLES:
            self.stack.append(tuple([self.pop() for _ in range(_TUPLES[opcode])][::-1]))
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        elif opcode == "PROTO":
            if argument > 2:
                raise _RefusedError(f"has a pickle of protocol {argument}, where torch writes 2")
        else:
            raise _RefusedError(f"has a pickle with {opcode}, which torch doesn't write")

    def name(self, argument: str) -> None:
        """Note a class or function by name."""
        if not self.allowed(argument):
            raise _RefusedError(
                f"names {argument.replace(' ', '.')!r}, which holds no weights and could run code; "
                "nothing of it was run. Don't load this file elsewhere either: ask its author for "
                "safetensors"
            )
        self.stack.append(Name(argument))

    def put(self, argument: int) -> None:
        """Remember the top of the stack."""
        self.memory[argument] = self.stack[-1]

    def recall(self, argument: int) -> None:
        """Bring back what was remembered."""
        self.stack.append(self.memory[argument])

    def call(self, _: Any) -> None:
        """Note a call."""
        args, of = self.pop(), self.pop()
        self.stack.append(Call(_checked(of, Name), _checked(args, tuple)))

    def new(self, _: Any) -> None:
        """Note an object; TorchScript's are made without arguments."""
        args, of = self.pop(), self.pop()
        if args != ():
            raise ValueError("an object made with arguments")
        self.stack.append(Instance(_checked(of, Name)))

    def build(self, _: Any) -> None:
        """Note an object's state."""
        state = self.pop()
        _checked(self.stack[-1], Instance).state = state

    def outside(self, _: Any) -> None:
        """Note a reference to something stored elsewhere."""
        self.stack.append(Outside(_checked(self.pop(), tuple)))

    def append(self, _: Any) -> None:
        """Add one value to a list."""
        value = self.pop()
        _checked(self.stack[-1], list).append(value)

    def appends(self, _: Any) -> None:
        """Add values to a list."""
        values = self.since_mark()
        _checked(self.stack[-1], list).extend(values)

    def setitem(self, _: Any) -> None:
        """Add one entry to a dictionary."""
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def setitems(self, _: Any) -> None:
        """Add entries to a dictionary."""
        self._set(self.since_mark())

    def _set(self, values: list[Any]) -> None:
        target = _checked(self.stack[-1], dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_checked(key, str | int | float)] = value


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} where {kind} should be")
    return value


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": _Machine.name,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.outside,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
}
