"""Record: a frozen value class. Its own declarations are the subject here, not netfilter's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from istio_init.record import Record, RecordType


class Point(Record):
    """Two coordinates, one of them with a default."""

    x: int
    y: int = 5


class Place(Point):
    """A point with a name, and a note that doesn't count."""

    name: str = "here"
    note: str = ""
    _uncompared = ("note",)


class Twin(Record):
    """The same fields as Point, and another kind."""

    x: int
    y: int = 5


class Specifier:
    """More than a default."""

    default = 7


class Described(Record):
    """A field whose default comes with more than a value."""

    x: int = Specifier()  # type: ignore[assignment]


def test_fields_come_in_order_and_by_name() -> None:
    assert (Point(1, 2).x, Point(1, 2).y) == (1, 2)
    assert Point(y=2, x=1) == Point(1, 2) == Point(1, y=2)


def test_defaults_fill_what_is_missing() -> None:
    assert Point(1) == Point(1, 5)
    assert Place(1) == Place(1, 5, "here", "")
    assert Place(1, 2) == Place(1, 2, "here", "")
    assert Place(1, name="there") == Place(1, 5, "there")
    assert Described().x == 7


def test_a_default_says_more_than_its_value_where_it_is_a_specifier() -> None:
    assert isinstance(Described.specifiers["x"], Specifier)
    assert Point.specifiers == {}


class Square(Record):
    """More fields than there are functions for."""

    a: int
    b: int
    c: int = 3
    d: int = 4
    e: int = 5
    f: int = 6


@pytest.mark.parametrize(
    ("values", "named", "why"),
    [
        ((), {}, "Point.__init__() missing 1 required positional argument: 'x'"),
        ((), {"y": 1}, "Point.__init__() missing 1 required positional argument: 'x'"),
        ((1, 2, 3), {}, "Point.__init__() takes from 2 to 3 positional arguments but 4 were given"),
        ((1,), {"x": 1}, "Point.__init__() got multiple values for argument 'x'"),
        ((1,), {"z": 1}, "Point.__init__() got an unexpected keyword argument 'z'"),
    ],
)
def test_wrong_arguments_are_a_type_error(values: tuple[Any, ...], named: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError) as raised:
        Point(*values, **named)
    assert str(raised.value) == why


@pytest.mark.parametrize(
    ("values", "named", "why"),
    [
        ((), {}, "Square needs ['a', 'b']"),
        ((1,), {"c": 1}, "Square needs ['b']"),
        ((1, 2, 3, 4, 5, 6, 7), {}, "Square takes 6 values, 7 were given"),
        ((1, 2, 3, 4, 5, 6, 7), {"e": 4}, "Square takes 6 values, 7 were given"),
        ((1,), {"a": 1}, "Square was given ['a'] twice"),
        ((1,), {"z": 1}, "Square has no field ['z']"),
    ],
)
def test_wrong_arguments_of_many_are_a_type_error(values: tuple[Any, ...], named: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError) as raised:
        Square(*values, **named)
    assert str(raised.value) == why


FIELDS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")


@pytest.mark.parametrize("count", range(len(FIELDS) + 1))
@pytest.mark.parametrize("defaults", range(len(FIELDS) + 1))
def test_any_number_of_fields(count: int, defaults: int) -> None:
    fields = FIELDS[:count]
    arguments = {field: field.upper() for field in fields[max(count - defaults, 0) :]}
    annotations = dict.fromkeys(fields, "str")
    kind: Any = RecordType("Kind", (Record,), {"__annotations__": annotations, **arguments})
    everything = tuple(range(count))
    assert [getattr(kind(*everything), field) for field in fields] == list(everything)
    by_name = kind(**dict(zip(fields, everything, strict=True)))
    assert by_name == kind(*everything)
    needed = everything[: count - len(arguments)]
    assert [getattr(kind(*needed), field) for field in fields] == [*needed, *arguments.values()]
    for changed in fields:
        assert kind(*everything).replace(**{changed: "other"}) != by_name


class Cube(Point):
    """More fields than there are functions for, on those of a record that has one."""

    a: int = 1
    b: int = 2
    c: int = 3
    d: int = 4


def test_more_fields_than_the_record_that_they_are_added_to() -> None:
    assert Cube(1, 2, d=6) == Cube(x=1, y=2, a=1, b=2, c=3, d=6)
    with pytest.raises(TypeError, match=r"Cube needs \['x'\]"):
        Cube()  # type: ignore[call-arg]


def test_nothing_can_be_changed() -> None:
    point = Point(1, 2)
    with pytest.raises(AttributeError, match="Point is immutable: x can't be set"):
        point.x = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Point is immutable: x can't be deleted"):
        del point.x
    with pytest.raises(AttributeError, match="Point is immutable: z can't be set"):
        point.z = 3
    assert not hasattr(point, "__dict__")
    assert point == Point(1, 2)


def test_equal_by_kind_and_content() -> None:
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    assert Point(1, 2) != Twin(1, 2)
    assert Point(1, 5) != Place(1)
    assert Point(1, 2) != (1, 2)
    assert len({Point(1, 2), Point(1, 2), Twin(1, 2)}) == 2


def test_a_field_that_is_not_compared_is_carried() -> None:
    noted, plain = Place(1, note="windy"), Place(1)
    assert noted == plain
    assert hash(noted) == hash(plain)
    assert noted.note == "windy"
    assert noted.replace(x=2).note == "windy"


def test_replace_makes_another() -> None:
    point = Point(1, 2)
    assert point.replace(y=3) == Point(1, 3)
    assert point.replace() == point == Point(1, 2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        point.replace(z=1)


def test_repr_builds_it_again() -> None:
    place = Place(1, 2, "there's", note="windy")
    assert repr(place) == "Place(x=1, y=2, name=\"there's\", note='windy')"
    assert eval(repr(place)) == place  # noqa: S307 (our own text)


def test_copies_and_pickles_are_equal_and_whole() -> None:
    place = Place(1, note="windy")
    for other in (pickle.loads(pickle.dumps(place)), copy.copy(place), copy.deepcopy(place)):
        assert other == place
        assert other.note == "windy"


def test_match_takes_fields_by_position() -> None:
    match Place(1, 2, "there"):
        case Place(x, y, name):
            assert (x, y, name) == (1, 2, "there")
        case _:
            pytest.fail("not matched")
