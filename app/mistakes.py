"""What is wrong with what a client wrote, in our words: where it is, and what is wanted there."""

import re
from functools import cache
from typing import TypeVar

import msgspec
from litestar._signature import model as framework
from litestar.exceptions import SerializationException, ValidationException
from msgspec import Struct
from msgspec import inspect as shapes

from app.problems import BadRequest, Mistake

Shape = TypeVar("Shape")
# A way through our own fields: what a client calls its fields stands in the message before it, and may look like
# anything, a thousand places among them.
WAY = r"[\w.\[\]-]{1,300}"
PLACE = re.compile(rf" - at `\$({WAY})`\Z")
PLACE_OF_FRAMEWORK = re.compile(rf"`\$\.({WAY})`\Z")
MISSING = re.compile(r"^Object missing required field `([^`]*)`")
UNKNOWN = re.compile(r"^Object contains unknown field `([^`]*)")
BYTE = re.compile(r"\(byte (\d+)\)")
WHOLE = "the body"


class _Complaint(Struct):
    """What the framework says of one mistake. What is wrong with a body itself has no key but its parameter's."""

    message: str
    key: str = ""
    source: str = ""


class _Described(Struct):
    description: str = ""


def decoded(content: bytes, shape: type[Shape], *, at: str = "") -> Shape:
    """What JSON says; `at` is the place that it was found at. Raises BadRequest."""
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.ValidationError as error:
        raise _refused([_mistake(str(error), shape, at)]) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(_no_json(error, at)) from error


def converted(value: object, shape: type[Shape], *, at: str = "") -> Shape:
    """The same of what was decoded before. Raises BadRequest."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise _refused([_mistake(str(error), shape, at)]) from error


def read_in_line() -> None:
    """Have the framework look for a place as we do. Its own pattern begins anew wherever a field's name looks like one,
    and goes to the name's end each time: a name of a megabyte would hold up everybody for minutes."""
    framework.ERR_RE = PLACE_OF_FRAMEWORK


def of_framework(error: Exception, parameters: type[Struct]) -> Exception:
    """An error in our words, where it is the framework's about a route's `parameters`."""
    if isinstance(error.__cause__, SerializationException):
        return BadRequest(_no_json(error.__cause__, ""))
    if not isinstance(error, ValidationException) or not isinstance(error.extra, list):
        return error
    said = msgspec.convert(error.extra, list[_Complaint])
    return _refused([_of_framework(one, parameters) for one in said])


def _of_framework(said: _Complaint, parameters: type[Struct]) -> Mistake:
    place = said.key if said.source != "body" or said.key == "data" else f"data.{said.key}"
    found = _mistake(f"{said.message} - at `$.{place}`", parameters, "")
    if said.source == "body":
        found.key = found.key.removeprefix("data").removeprefix(".")
    found.source = said.source or "body"
    return found


def _refused(mistakes: list[Mistake]) -> BadRequest:
    return BadRequest("; ".join(f"{one.key or WHOLE}: {one.message}" for one in mistakes), mistakes)


def _no_json(error: Exception, at: str) -> str:
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return f"{at or WHOLE}: is nested too deeply"
    where = BYTE.search(str(error))
    return f"{at or WHOLE}: must be JSON, and is not" + (f", from byte {where[1]} on" if where else "")


def _mistake(said: str, shape: type[object], at: str) -> Mistake:
    """Of msgspec's own words only the place is told, and which field is missing, or one too many."""
    place = PLACE.search(said)
    path = place[1] if place else ""
    node = _at(_shape(shape), path)
    if found := MISSING.match(said):
        wanted = _at(node, f".{found[1]}")
        return Mistake(key=_key(at, f"{path}.{found[1]}"), message=f"is missing; must be {words(wanted)}")
    if found := UNKNOWN.match(said):
        message = f"there is no such field; there are: {', '.join(_fields(node))}"
        return Mistake(key=_key(at, f"{path}.{found[1][:60]}"), message=message)
    return Mistake(key=_key(at, path), message=f"must be {words(node)}")


def _key(at: str, path: str) -> str:
    return f"{at}{path}".removeprefix(".").replace("[...]", "")


@cache
def _shape(shape: type[object]) -> shapes.Type:
    return shapes.type_info(shape)


def _at(node: shapes.Type, path: str) -> shapes.Type:
    """What is wanted at a place, or at what of the way to it is known."""
    while path:
        step = _step(node, path)
        if step is None:
            return node
        node, path = step
    return node


def _step(node: shapes.Type, path: str) -> tuple[shapes.Type, str] | None:
    match node:
        case shapes.Metadata(type=inner):
            return _step(inner, path)
        case shapes.UnionType(types=choices):
            return next((step for one in choices if (step := _step(one, path)) is not None), None)
        case shapes.StructType(fields=fields):
            # The longest first: names may hold dots.
            for field in sorted(fields, key=lambda field: -len(field.encode_name)):
                rest = path.removeprefix(f".{field.encode_name}")
                if rest != path and rest[:1] in ("", ".", "["):
                    return field.type, rest
            return None
        case shapes.ListType(item_type=item) | shapes.VarTupleType(item_type=item) | shapes.DictType(value_type=item):
            return (item, path.partition("]")[2]) if path.startswith("[") else None
        case _:
            return None


def _fields(node: shapes.Type) -> list[str]:
    match node:
        case shapes.Metadata(type=inner):
            return _fields(inner)
        case shapes.UnionType(types=choices):
            return [name for one in choices for name in _fields(one)]
        case shapes.StructType(fields=fields):
            return [field.encode_name for field in fields]
        case _:
            return []


def words(node: shapes.Type) -> str:
    """What is wanted, for people. (A table, a kind a case.)"""
    match node:
        case shapes.Metadata(type=inner):
            schema = node.extra_json_schema or {}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # msgspec says no more than dict
            return msgspec.convert(schema, _Described).description or words(inner)
        case shapes.UnionType(types=choices):
            # What is left out of a body is no choice of who writes one.
            told = [one for one in choices if not isinstance(one, shapes.CustomType)] or list(choices)
            return ", or ".join(words(one) for one in told)
        case shapes.NoneType():
            return "null"
        case shapes.BoolType():
            return "true or false"
        case shapes.StrType(min_length=least, max_length=most):
            return "a string" + _bounds(least, most, "characters")
        case shapes.IntType(ge=least, le=most):
            return "a whole number" + _bounds(least, most, "")
        case shapes.FloatType(ge=least, le=most):
            return "a number" + _bounds(least, most, "")
        case shapes.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case shapes.UUIDType():
            return "a UUID"
        case shapes.DateTimeType():
            return "a time with its zone (2026-01-31T12:00:00Z, say)"
        case (
            shapes.ListType(min_length=least, max_length=most) | shapes.VarTupleType(min_length=least, max_length=most)
        ):
            return "a list" + _bounds(least, most, "items")
        case shapes.StructType() | shapes.DictType():
            return "an object"
        case _:
            return "a JSON value"


def _bounds(least: float | None, most: float | None, what: str) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        bounds = f"at least {least}"
    elif least is None:
        bounds = f"at most {most}"
    else:
        bounds = f"{least} to {most}"
    return f" of {bounds} {what}".rstrip()
