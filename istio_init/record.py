"""Record: an immutable value class that is cheap to import.

Importing `dataclasses` takes longer than everything else this program does (it brings in inspect, re
and enum; docs/design.md has the figures), and every pod waits for that import. A Record is declared and
type-checked like a frozen, slotted dataclass, and needs none of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeAlias, dataclass_transform

    _Setter: TypeAlias = Callable[[object, object], None]
else:

    def dataclass_transform(**_):
        """For type checkers; does nothing at run time."""
        return lambda cls: cls


# The constructors of records with one to five fields, the same as if each class defined its own. Compiling them from
# text, as dataclasses does, would take a start longer than creating all of its records.


def _of_one(first: _Setter) -> Callable[..., None]:
    def init(self: object, a: object) -> None:
        first(self, a)

    return init


def _of_two(first: _Setter, second: _Setter) -> Callable[..., None]:
    def init(self: object, a: object, b: object) -> None:
        first(self, a)
        second(self, b)

    return init


def _of_three(first: _Setter, second: _Setter, third: _Setter) -> Callable[..., None]:
    def init(self: object, a: object, b: object, c: object) -> None:
        first(self, a)
        second(self, b)
        third(self, c)

    return init


def _of_four(first: _Setter, second: _Setter, third: _Setter, fourth: _Setter) -> Callable[..., None]:
    def init(self: object, a: object, b: object, c: object, d: object) -> None:
        first(self, a)
        second(self, b)
        third(self, c)
        fourth(self, d)

    return init


def _of_five(first: _Setter, second: _Setter, third: _Setter, fourth: _Setter, fifth: _Setter) -> Callable[..., None]:
    def init(self: object, a: object, b: object, c: object, d: object, e: object) -> None:  # noqa: PLR0913, PLR0917
        first(self, a)
        second(self, b)
        third(self, c)
        fourth(self, d)
        fifth(self, e)

    return init


_MAKERS: dict[int, Callable[..., Any]] = {1: _of_one, 2: _of_two, 3: _of_three, 4: _of_four, 5: _of_five}


@dataclass_transform(frozen_default=True, eq_default=True)
class RecordType(type):
    """Turns a class body's annotations into slots, parameters and match arguments; defaults are at the end.

    A field's default may be an object that has the value as its `default`; such objects are kept in `specifiers`.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> RecordType:  # noqa: D102
        own = (*namespace.get("__annotations__", ()),)
        base: Any = bases[0] if bases else None
        fields, defaults = ((*base._fields, *own), {**base._defaults}) if base else (own, {})
        for field in own:
            if field in namespace:
                default = defaults[field] = namespace.pop(field)
                if hasattr(default, "default"):
                    defaults[field] = default.default
                    namespace.setdefault("specifiers", {})[field] = default
        namespace["_fields"] = namespace["__match_args__"] = namespace["_compared"] = fields
        if "_uncompared" in namespace:
            namespace["_compared"] = (*[field for field in fields if field not in namespace["_uncompared"]],)
        namespace["_defaults"] = defaults
        namespace["__slots__"] = (*own, *namespace["__slots__"]) if "__slots__" in namespace else own
        cls: Any = type.__new__(mcs, name, bases, namespace)
        # Slot descriptors bypass __setattr__, which makes records immutable.
        setters = [getattr(cls, field).__set__ for field in fields]
        if maker := _MAKERS.get(len(fields)):
            init = maker(*setters)
            init.__code__ = init.__code__.replace(co_varnames=("self", *fields))
            init.__defaults__ = (*defaults.values(),)
            init.__qualname__ = f"{name}.__init__"
            cls.__init__ = init
        else:
            cls._setters = dict(zip(fields, setters, strict=True))
            if base:
                cls.__init__ = Record.__init__
        record_type: RecordType = cls
        return record_type


class Record(metaclass=RecordType):
    """Base of all values: fields from annotations, equality by class and content, hashable, immutable.

    Equality ignores the fields that a class lists in `_uncompared`. Further slots are unset at first.
    """

    if TYPE_CHECKING:
        _fields: ClassVar[Any]
        _defaults: ClassVar[Any]
        specifiers: ClassVar[Any]
        _uncompared: ClassVar[Any]
        _compared: ClassVar[Any]
        _setters: ClassVar[Any]
    else:
        specifiers = {}

        def __init__(self, *values, **named):
            """One argument for each field, in order or by name; TypeError as a function would raise."""
            if values:
                named = self._by_name(values, named)
            arguments = {**self._defaults, **named}
            if arguments.keys() != self._setters.keys():
                raise TypeError(self._mistake(arguments))
            for field, write in self._setters.items():
                write(self, arguments[field])

    @classmethod
    def _by_name(cls, values: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """The arguments with those in order by their fields' names, too."""
        if len(values) > len(cls._fields):
            raise TypeError(f"{cls.__name__} takes {len(cls._fields)} values, {len(values)} were given")
        arguments = dict(zip(cls._fields, values, strict=False))
        if twice := arguments.keys() & named.keys():
            raise TypeError(f"{cls.__name__} was given {sorted(twice)} twice")
        return arguments | named

    @classmethod
    def _mistake(cls, arguments: dict[str, Any]) -> str:
        if unknown := arguments.keys() - set(cls._fields):
            return f"{cls.__name__} has no field {sorted(unknown)}"
        return f"{cls.__name__} needs {[field for field in cls._fields if field not in arguments]}"

    def replace(self, **changes: Any) -> Self:
        """The same record with some fields changed; TypeError for an unknown field."""
        fields = self._fields
        for field in changes:
            if field not in fields:
                return type(self)(**changes)  # which raises the TypeError
        other, write = object.__new__(type(self)), object.__setattr__
        for field in fields:
            write(other, field, changes[field] if field in changes else getattr(self, field))
        return other

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        for field in self._compared:  # noqa: SIM110 (all() of a generator takes twice as long)
            if getattr(self, field) != getattr(other, field):
                return False
        return True

    def __hash__(self) -> int:
        return hash((type(self), *[getattr(self, field) for field in self._compared]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{field}={getattr(self, field)!r}' for field in self._fields)})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} can't be set; use replace()")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} can't be deleted")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, field) for field in self._fields)
