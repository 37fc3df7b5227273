"""nanoGPT's command line, typed: any number of config files and --key=value, in order, later wins.

Fills any dataclass whose fields are `name: Annotated[type, "meaning"] = default`; see keys.py for ranges and paths. A
config file is Python: it runs in a namespace of its own, sees the values set before it, may import, compute and include
other config files, and sets keys by assignment.
"""

import __future__

import argparse
import ast
import copy
import math
import numbers
import sys
import textwrap
import traceback
import types
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

from blockwise import UserError
from blockwise.keys import PATH, Range, as_path, marker
from blockwise.spelling import close, did_you_mean

IGNORED = (types.ModuleType, __future__._Feature)  # what imports leave in a config file, besides functions and classes


def configure(cls, argv, about, flags=None, start=None):
    """Build `cls` from command-line arguments.

    flags: {name: meaning} of arguments without a value, such as --dry_run, which are not keys (None: those of `cls`).
        A name with a value, "dry_run=measure", is one form of the flag "dry_run".
    start: an object with the fields of `cls`, whose values take the place of the defaults.
    Returns (config, set of the keys that were given, set of the flags that were given, in both forms).
    Prints and exits at --help. Raises UserError for an unknown key, a wrong type, a config file that fails.
    """
    flags, words = getattr(cls, "flags", {}) if flags is None else flags, getattr(cls, "words", None)
    hints = hints_of(cls)
    kinds = {name: get_args(hint)[0] for name, hint in hints.items()}
    values = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(cls)}
    if start is not None:
        values = {name: copy.deepcopy(getattr(start, name)) for name in values}
    if "--help" in argv or "-h" in argv:
        print(help_text(cls, hints, values, about, flags, words))
        sys.exit(0)
    given, given_flags, positional = set(), set(), []
    for arg in argv:
        if arg.startswith("--") and arg[2:] in flags:
            given_flags |= {arg[2:], arg[2:].partition("=")[0]}
            continue
        if words and not arg.startswith("-"):
            positional.append(arg)
            continue
        changes = parse_key(arg, kinds, values, flags) if arg.startswith("-") else run_file(as_path(arg), kinds, values)
        values.update(changes)
        given.update(changes)
    if words:
        values[words] = named_words(words, positional, values[words], hints[words])
    for name, hint in hints.items():
        if marker(hint, str) == PATH and values[name]:
            value = values[name]
            values[name] = as_path(value) if isinstance(value, str) else [as_path(path) for path in value]
    return cls(**values), given, given_flags


@cache
def hints_of(cls):
    """{key: its annotation} of a dataclass."""
    return get_type_hints(cls, include_extras=True)


def configure_command(commands, argv, about):
    """`configure` for a program whose first argument names a command. commands: {name: dataclass of its keys}.

    Returns (name, config, keys given, flags given). --help lists the commands; after a command, its keys.
    """
    name, *argv = [*argv, "--help"] if len(argv) < 1 else argv
    if name in ("--help", "-h"):
        print(about.strip())
        sys.exit(0)
    if name not in commands:
        near = did_you_mean(close(name, commands))
        raise UserError(f"unknown command {name!r}: expected {' or '.join(commands)}, then --key=value{near}")
    return name, *configure(commands[name], argv, about)


def named_words(key, words, value, hint):
    """The value of the key that takes the arguments without --key=, or its default if there are none.

    Raises UserError for too many of them, or too few.
    """
    if words and get_origin(get_args(hint)[0]) is list:
        value = words
    elif words:
        if len(words) > 1:
            raise UserError(f"unexpected {words[1]!r} after {words[0]!r}: expected one, {hint.__metadata__[0]}")
        value = words[0]
    if not value:
        raise UserError(f"{key} is missing: expected {hint.__metadata__[0]}")
    return value


def parse_key(arg, kinds, values, flags):
    """'--lr_mult.QK=6' -> {'lr_mult': {..., 'QK': 6.0}}"""
    name, equals, text = arg.removeprefix("--").partition("=")
    key, dot, entry = name.partition(".")
    if name in flags:
        forms = [f"--{flag}" for flag in flags if flag.partition("=")[0] == name]
        raise UserError(f"{arg}: expected {' or '.join(forms)}{', which takes no value' * (len(forms) == 1)}")
    if not arg.startswith("--") or key not in kinds:
        raise unknown(f"key {name!r}", key.strip("-"), [*kinds, *flags])
    if not equals:
        raise UserError(f"{arg}: expected --{name}=VALUE")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if dot and not table(kinds[key]):
        raise UserError(f"--{name}: {key} has no entries, expected --{key}={describe(kinds[key])}")
    if dot and not isinstance(values[key], dict):
        whole = f"--{key}=\"{{'{entry}': {text}}}\""
        raise UserError(f"--{name}: {key}={values[key]} has no entries; expected a dict in its place: {whole}")
    return {key: merge(key, {entry: value} if dot else value, kinds[key], values[key], text)}


class Namespace(dict):
    """Globals of a config file, which remember what was assigned, also where the value stayed the same."""

    def __init__(self, values):
        super().__init__(values)
        self.assigned = set()

    def __setitem__(self, name, value):
        self.assigned.add(name)
        super().__setitem__(name, value)


def run_file(path, kinds, values):
    """The keys that a config file sets, as {key: value}; in it, include("FILE.py") runs one found from its folder."""
    names = Namespace({**copy.deepcopy(values), "__name__": "config"})

    def run(file):
        if not file.is_file():
            near = close(file.name, [p.name for p in file.parent.glob("*.py")])
            problem = "is a folder" if file.name and file.is_dir() else "does not exist"
            raise UserError(f"config file {file} {problem}{did_you_mean([str(file.parent / n) for n in near])}")
        includer = {name: names[name] for name in ("__file__", "include") if name in names}
        names.update(__file__=str(file), include=lambda other: run(file.parent / other))
        try:
            exec(compile(file.read_bytes(), str(file), "exec"), names)
            names.update(includer)
        except UserError:  # of a file that this one includes
            raise
        except (Exception, SystemExit) as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
            line = lines[-1] if lines else getattr(error, "lineno", None)
            where = f"{file}, line {line}" if line else file
            raise UserError(f"config file {where}: {type(error).__name__}: {error}") from None

    run(Path(path))
    changes = {}
    for name, value in names.items():
        if name in kinds:
            if name in names.assigned or value != values[name]:
                if isinstance(value, dict) and name not in names.assigned:  # changed in its place
                    value = {entry: v for entry, v in value.items() if v != values[name].get(entry)}
                changes[name] = merge(name, value, kinds[name], values[name], where=f"{path}: ")
        elif not (name.startswith("_") or callable(value) or isinstance(value, IGNORED)):
            raise unknown(f"key {name!r} in {path}", name, kinds)
    return changes


def merge(key, value, kind, old, text=None, where=""):
    """value as a `kind`, where a dict changes only the entries of `old` that it names.

    text: what was typed, where it was typed. Raises UserError for a wrong type, and for an entry of a dict whose
    keys are a Literal, if it is none of these.
    """
    if table(kind) and isinstance(value, dict):
        names, member = get_args(table(kind))
        old = old if isinstance(old, dict) else {}
        for entry in value:
            if not isinstance(entry, str) or (choices(names) and entry not in choices(names)):
                raise unknown(f"entry {entry!r} of {where}{key}", str(entry), choices(names) or old)
        named = {entry: value[entry] for entry in getattr(value, "given", value)}
        return old | {e: merge(f"{key}.{e}", v, member, old.get(e), where=where) for e, v in named.items()}
    try:
        return convert(value, kind, text)
    except TypeError:
        names = [c for c in choices(kind) if isinstance(c, str)]
        members = value if isinstance(value, list | tuple) else str(value).split(",")
        near = did_you_mean([name for member in members if member not in names for name in close(str(member), names)])
        shown = repr(value) if text is None else text
        raise UserError(f"{where}{key}: expected {describe(kind)}, got {shown}{near}") from None


def table(kind):
    """The dict type that a kind is, or that a union has as a member; None without one."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else [kind]
    return next((member for member in members if get_origin(member) is dict), None)


def convert(value, kind, text=None):
    """value as a `kind` (a type, a union, a Literal), else TypeError: 1 is a float too, but True is not a number."""
    if get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            try:
                return convert(value, member, text)
            except TypeError:
                continue
    elif get_origin(kind) is Literal:
        if any(type(value) is type(choice) and value == choice for choice in get_args(kind)):
            return value
    elif get_origin(kind) is list:
        typed = isinstance(value, str) and text is not None
        alone = value.split(",") * bool(value) if typed else [value]  # QK,VO or 1 was typed
        values = value if isinstance(value, list | tuple) else alone
        return [convert(member, get_args(kind)[0]) for member in values]
    elif kind is str and text is not None:
        return text
    elif kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    elif kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    elif kind in (bool, str, type(None)) and isinstance(value, kind):
        return value
    raise TypeError


def choices(kind):
    """The values that a Literal, or a union with one, admits."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return [c for member in get_args(kind) for c in choices(member)]


def describe(kind):
    """A type as a user reads it: 'int or None', "'gpt2' or 'llama'", 'True or False or 'auto''."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(describe(member) for member in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is dict:
        return f"a dict of {describe(get_args(kind)[1])}"
    if get_origin(kind) is list:
        return f"a list of {describe(get_args(kind)[0])}"
    return {type(None): "None", bool: "True or False"}.get(kind, kind.__name__)


def unknown(what, name, known):
    return UserError(f"unknown {what}{did_you_mean(close(name, known)) or ': --help lists them'}")


def help_text(cls, hints, values, about, flags, words):
    """What --help prints: the class's own keys and the flags before the keys that it inherits."""
    lines = [about.strip(), ""]
    if words:
        lines += ["arguments:", f"  {words}", f"        {hints[words].__metadata__[0]}", ""]
    lines += ["keys (--key=VALUE):", *key_lines(cls.__annotations__, hints, values, words)]
    lines += ["", "flags:"]
    lines += [f"  --{name}\n        {meaning}" for name, meaning in {**flags, "help": "print this"}.items()]
    inherited = hints.keys() - cls.__annotations__.keys()
    if inherited:
        title = cls.__base__.__doc__.splitlines()[0].partition(". ")[0].rstrip(".")
        lines += ["", f"{title}:", *key_lines(inherited, hints, values, words)]
    return "\n".join(lines)


def key_lines(names, hints, values, words):
    """Each of these keys with its default, type and meaning."""
    for name, hint in hints.items():
        if name not in names or name == words:
            continue
        kind, interval = get_args(hint)[0], marker(hint, Range)
        described = describe(kind) + (f", {interval}" if interval else "")
        default = f"  --{name}={values[name]}"
        yield from (
            [f"{default}  ({described})"] if len(default + described) < 116 else [default, f"        ({described})"]
        )
        yield from textwrap.wrap(hint.__metadata__[0], width=110, initial_indent=" " * 8, subsequent_indent=" " * 8)


class ArgumentParser(argparse.ArgumentParser):
    """For commands that take file names: a mistake is a UserError, hence one line, and never an abbreviation."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_args(self, args=None):
        """Takes paths as `as_path` does; no other argument of these commands begins with ~."""
        return super().parse_args([with_path(arg) for arg in (sys.argv[1:] if args is None else args)])

    def error(self, message):
        raise UserError(f"{message} (--help shows what is expected)")


def with_path(arg):
    """An argument, FILE or --key=FILE, with FILE as `as_path` takes it."""
    option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    return option + equals + as_path(value)
