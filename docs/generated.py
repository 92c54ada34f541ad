"""The reference, read off the code: schema, named things, presets, verbs, public names.

A page holds ``<!-- generated: WHAT -->`` or ``<!-- generated: WHAT OF -->``, and `fill`
puts Markdown there while Sphinx reads it. Nothing is written to a file, so nothing can
go stale; and no list of names stands here, so nothing new can be forgotten.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import loralab
from loralab import registry
from loralab.cli.listing import meanings
from loralab.cli.main import app
from loralab.config import ExperimentConfig
from loralab.config.compose import GROUPS, describe, presets
from loralab.config.schema import Named
from loralab.reporting.paper.draft import read as draft_of
from loralab.reporting.paper.references import resolve
from loralab.reporting.paper.sources import Library

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- generated: (\S+)(?: (.+?))? -->")
OWN_PAGES = ("PEFT method", "merge method")
BOUNDS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<", MinLen: "length ≥", MaxLen: "length ≤"}


def fill(page: str) -> str:
    """Return a page with what is generated, and what was measured, in its places."""

    def made(match: re.Match[str]) -> str:
        what, of = match.groups()
        return PARTS[what](*([of] if of else []))

    return MARK.sub(made, measured(page))


def measured(page: str) -> str:
    """Return a page with each ``{{ reference }}`` as the number that it stands for.

    References are those of a paper (`docs/how-to/paper.md`); those in code stay.

    Raises:
        PaperError: one leads nowhere.
    """
    draft, library = draft_of(page), Library(ROOT)
    pieces, at = [], 0
    for one in draft.references:
        pieces += [page[at : one.start], resolve(library, one, draft.labels).written]
        at = one.end
    return "".join([*pieces, page[at:]])


def slug(*words: str) -> str:
    """Return the name of a link's target."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()) for word in words)


def prose(docstring: str | None) -> str:
    """Return a docstring as Markdown: what is no code has nothing special in it."""
    text = re.sub(r"::$", ":", inspect.cleandoc(docstring or ""), flags=re.M)
    text = re.split(r"^(?:Attributes|Args|Returns|Raises):$", text, flags=re.M)[0]
    paragraphs = re.split(r"\n\n+(?=\S)", text.strip())
    return "\n\n".join(
        "".join(
            part
            if part.startswith("`")
            else re.sub(r"(?<!^)([<$*\[])", r"\\\1", part, flags=re.M)
            for part in re.split(r"(`+[^`]+`+)", paragraph.split("\n\n    ")[0])
        )
        + "".join(f"\n\n    {rest}" for rest in paragraph.split("\n\n    ")[1:])
        for paragraph in paragraphs
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; empty if it has no rows."""
    body = [
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row)
        for row in rows
    ]
    if not body:
        return ""
    return "\n".join(["| " + " | ".join(head), "|:--" * len(head), *body]) + "\n"


def schema_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation, if there is one."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    found = [schema_of(one) for one in get_args(annotation)]
    return next((one for one in found if one), None)


def type_words(annotation: Any) -> str:
    """Return what may stand for a value, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(one) for one in inner)
    if origin in (list, tuple, frozenset, set):
        kept = [type_words(one) for one in inner if one is not Ellipsis]
        return f"list of {' or '.join(dict.fromkeys(kept))}"
    if origin is dict:
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, Named):
        return f"a [{annotation.kind}](#{slug('kind', annotation.kind)})"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{slug('config', annotation.__name__)})"
    if get_origin(annotation) is not None and inner:  # Annotated and its kind
        return type_words(inner[0])
    words = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true, false",
        "Path": "path",
    }
    name = getattr(annotation, "__name__", str(annotation))
    return words.get(name, name)


def bounds(field: FieldInfo) -> str:
    """Return the limits of a value, such as ``≥ 0, < 1``."""
    return ", ".join(
        f"{BOUNDS[type(one)]} {getattr(one, type(one).__slots__[0])}"
        for one in field.metadata
        if type(one) in BOUNDS
    )


def default_text(value: Any) -> str:
    """Return a value as it stands in YAML, as code."""
    words = {None: "null", True: "true", False: "false"}
    plain = value is None or isinstance(value, bool)
    return f"`{words[value] if plain else value}`"


def default_words(field: FieldInfo) -> str:
    """Return a default as it stands in YAML."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return default_text(_plain(value))


def _plain(value: Any) -> Any:
    """Return a default that holds models as the names that it gives."""
    if isinstance(value, list):
        return [one.name if isinstance(one, Named) else one for one in value]
    return value


def keys(schema: type[BaseModel], deep: bool = False) -> str:
    """Return the table of a schema's keys, those of schemas within it too if `deep`."""
    head = ["key", "value", "default", "meaning"]
    return table(head, _rows(schema, "", deep))


def _rows(schema: type[BaseModel], path: str, deep: bool) -> Iterator[tuple[str, ...]]:
    told = meanings(schema)  # type: ignore[arg-type]
    for key, field in schema.model_fields.items():
        inner = schema_of(field.annotation)
        nested = deep and inner and not issubclass(inner, Named)
        if nested:
            null = " or null" if type(None) in get_args(field.annotation) else ""
            words = f"mapping{null}"
        else:
            words = type_words(field.annotation)
        yield (
            f"`{path}{key}`",
            ", ".join(filter(None, [words, bounds(field)])),
            default_words(field),
            prose(field.description or told.get(key) or _first_line(inner)),
        )
        if nested and inner:
            yield from _rows(inner, f"{path}{key}.", deep)


def _first_line(schema: type[BaseModel] | None) -> str:
    return inspect.cleandoc(schema.__doc__ or "").split("\n")[0] if schema else ""


def sections(schema: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each part of a schema once, with the key that leads to it."""
    yield path, schema
    for key, field in schema.model_fields.items():
        inner = schema_of(field.annotation)
        if inner and not issubclass(inner, Named):
            yield from sections(inner, f"{path}.{key}".lstrip("."))


def config() -> str:
    """Return the keys of an experiment, section by section."""
    parts = []
    for path, schema in sections(ExperimentConfig):
        title = f"`{path}`" if path else "The experiment itself"
        target = f"({slug('config', schema.__name__)})="
        parts.append(f"{target}\n## {title}\n\n{prose(schema.__doc__)}\n\n")
        parts.append(keys(schema) + "\n")
    return "".join(parts)


def preset_tables() -> str:
    """Return the presets of each group, with what their files say of them."""
    parts = []
    for group in ("experiment", *GROUPS):
        rows = [(f"`{n}`", prose(describe(p))) for n, p in presets(group).items()]
        parts.append(f"## {group}\n\n{table(['preset', 'what'], rows)}\n")
    return "".join(parts)


def named(kind: str, level: str = "##") -> str:
    """Return every thing of a kind: what it is and the keys of its params."""
    parts = []
    for name in registry.names(kind):
        entry = registry.get(kind, name)
        module = import_module(entry.target.__module__)
        parts.append(f"({slug(kind, name)})=\n{level} `{name}`\n\n")
        parts.append(prose(module.__doc__) + "\n\n")
        parts.append(keys(entry.schema, deep=True) or "It has no keys.\n")
        parts.append("\n")
    return "".join(parts)


def others() -> str:
    """Return the things of every kind that has no page of its own."""
    parts = []
    for kind in sorted(set(registry.PACKAGES) - set(OWN_PAGES), key=str.lower):
        title = f"{kind[0].upper()}{kind[1:]}s"
        parts.append(f"({slug('kind', kind)})=\n## {title}\n\n{named(kind, '###')}")
    return "".join(parts)


def pages(folder: str) -> str:
    """Return the contents of a folder of pages; a glob that hits nothing would warn."""
    found = sorted(p.stem for p in (ROOT / "docs" / folder).glob("*.md"))
    names = "\n".join(name for name in found if name != "index")
    return f"```{{toctree}}\n{names}\n```" if names else ""


def rooms() -> str:
    """Return the rooms of the house from the ground up, in the order of lint."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r"^layers = \[(.*?)^\]", project, re.M | re.S)
    names = re.findall(r'"(loralab\.\w+)"', layers[1]) if layers else []
    rows = []
    for name in reversed(names):
        said = prose(import_module(name).__doc__).split("\n\n")[0]
        rows.append((f"`{name}`", said))
    return table(["room", "what"], rows)


def shortest() -> str:
    """Return, for each kind of named things, the shortest file that holds one."""
    rows = []
    for kind, package in sorted(registry.PACKAGES.items()):
        folder = Path(import_module(package).__path__[0])
        files = [f for f in folder.glob("*.py") if not f.name.startswith("_")]
        least = min(files, key=lambda file: (file.stat().st_size, file.name))
        rows.append((kind, f"`{least.relative_to(ROOT).as_posix()}`"))
    return table(["kind", "file"], rows)


@cache
def verbs() -> dict[str, Any]:
    """Map each verb, such as ``merge add``, to its command."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                written = "" if inner.hidden else name  # it stands for no command
                yield from walk(inner, f"{path} {written}".strip())
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield path, command

    return {path: one for path, one in walk(typer.main.get_command(app), "") if path}


def cli() -> str:
    """Return every verb: its help, its arguments, its options."""
    return "".join(_verb(path, command) for path, command in verbs().items())


def _verb(path: str, command: Any) -> str:
    given = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    words = [_metavar(one) for one in given]
    usage = " ".join(["loralab", path, *(["[OPTIONS]"] if options else []), *words])
    return "\n\n".join(
        [
            f"({slug('verb', path)})=\n## `loralab {path}`",
            prose(command.help),
            f"```text\n{usage}\n```",
            table(
                ["argument", "meaning"],
                ((f"`{one.name}`", prose(getattr(one, "help", ""))) for one in given),
            ),
            table(["option", "value", "default", "meaning"], map(_option, options)),
            "",
        ]
    )


def _metavar(one: Any) -> str:
    word = str(one.name).upper() + ("…" if one.nargs == -1 else "")
    return word if one.required else f"[{word}]"


def _option(one: Any) -> tuple[str, str, str, str]:
    limits = [("≥", one.min), ("≤", one.max)]
    told = [type_words(one.type_descriptor.annotation)]
    told += [f"{sign} {limit}" for sign, limit in limits if limit is not None]
    plain = one.default in (None, False) or callable(one.default)
    names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
    meaning = prose(one.help)
    if one.envvar:
        meaning += f" Environment: `{one.envvar}`."
    shown = "" if plain or one.required else default_text(one.default)
    return names, "" if one.is_flag else ", ".join(told), shown, meaning


def api() -> str:
    """Return autodoc's directives for the public names, by the rooms they live in."""
    rooms: dict[str, list[str]] = {}
    for name, home in loralab._HOME.items():
        room = home.removeprefix("loralab.").split(".")[0]
        rooms.setdefault(room, []).append(name)
    parts = []
    for room, names in sorted(rooms.items()):
        if room in loralab._HOME.values():
            parts.append(f"## Of {room}\n\n")
        else:
            module = import_module(f"loralab.{room}")
            parts.append(f"## loralab.{room}\n\n{prose(module.__doc__)}\n\n")
        parts.extend(_directive(name) for name in sorted(names, key=str.lower))
    return "".join(parts)


def _directive(name: str) -> str:
    value = getattr(loralab, name)
    home = getattr(value, "__module__", "loralab")
    if not home.startswith("loralab"):
        return f"`loralab.{name}` is `{home.split('.')[0]}.{name}`.\n\n"
    kind, options, after = "data", "", ""
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, Exception) else "class"
        own = [n for n, m in vars(value).items() if _documented(n, m)]
        options = f"\n   :members: {', '.join(own)}" if own else ""
        if (
            issubclass(value, BaseModel) and value.model_fields
        ):  # no signature of a page
            after = f"Its keys: {type_words(value)}.\n\n"
            name += "(**keys)"
    elif callable(value):
        kind = "function"
    return f"```{{eval-rst}}\n.. auto{kind}:: loralab.{name}{options}\n```\n\n{after}"


def _documented(name: str, member: Any) -> bool:
    """Say whether a class's own member is public and has a docstring."""
    plain = member.fget if isinstance(member, property) else member
    plain = getattr(plain, "__func__", plain)
    return (
        not name.startswith("_") and inspect.isfunction(plain) and bool(plain.__doc__)
    )


PARTS: dict[str, Callable[..., str]] = {
    "config": config,
    "presets": preset_tables,
    "named": named,
    "others": others,
    "pages": pages,
    "rooms": rooms,
    "shortest": shortest,
    "cli": cli,
    "api": api,
}
