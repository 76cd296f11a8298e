"""Make up secrets: passwords, PINs and codes, keys and tokens."""

from __future__ import annotations

import string
from random import Random

from tuneline.data.pii.canaries.canary import OBFUSCATED, Value
from tuneline.data.pii.canaries.lists import digits, letters, words
from tuneline.data.pii.canaries.numbers import SPOKEN, oddly_grouped, read_out
from tuneline.data.pii.canaries.people import names
from tuneline.data.pii.canaries.register import Register

_ALNUM = string.ascii_letters + string.digits


def password(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a password that a person would choose, or that a program makes."""
    word, other = draw.choice(words("words")), draw.choice(words("words"))
    name = names(draw)[0].casefold()
    sign = draw.choice("!#$.-_*")
    return Value(
        (
            draw.choice(
                [
                    f"{word}{digits(draw, draw.choice([2, 2, 3, 4]))}",
                    f"{word.title()}{digits(draw, 2)}{sign}",
                    f"{word}{sign}{other}",
                    f"{name}{digits(draw, 4)}",
                    f"{word}{other}",
                    f"{letters(draw, 4, _ALNUM)}{sign}{letters(draw, 5, _ALNUM)}",
                    f"{word.replace('o', '0').replace('e', '3')}{digits(draw, 1)}",
                    f"{word} {other}",
                    # What people remember, and what they are asked for as a word.
                    word,
                    name,
                    f"{name} {word}",
                    f"{word} {other} {draw.choice(words('words'))}",
                ]
            ),
        )
    )


# Share of PINs that were not drawn by a bank.
_CHOSEN = 0.25
# Share of obfuscated ones that are said in words.
_SAID = 0.4


_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()


def in_tens(code: str) -> str:
    """Return a code as it is said in pairs of digits ("forty two oh seven")."""
    said = []
    for pair in (code[at : at + 2] for at in range(0, len(code), 2)):
        if len(pair) == 1:
            said.append(SPOKEN[int(pair)])
            continue
        ten, one = pair[0], pair[1]
        if ten == "1":
            said.append(_TEENS[int(one)])
            continue
        first = "oh" if ten == "0" else _TENS[int(ten)]
        rest = "" if one == "0" and ten != "0" else SPOKEN[int(one)]
        said.append(f"{first} {rest}".strip())
    return " ".join(said)


def pin(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a PIN or a one-time code."""
    code = digits(draw, draw.choice([4, 4, 4, 5, 6, 6, 8]), "0123456789")
    if len(code) == 4 and draw.random() < _CHOSEN:
        # Many people choose a year, or one digit four times.
        code = draw.choice([str(draw.randint(1935, 2019)), code[0] * 4])
    if form == OBFUSCATED:
        half = len(code) // 2
        if draw.random() < _SAID:
            return read_out(draw, code, (half, len(code) - half))
        return Value(
            (
                draw.choice(
                    [
                        " ".join(code),
                        "-".join(code),
                        f"{code[:half]} {code[half:]}",
                        oddly_grouped(draw, code),
                        in_tens(code),
                    ]
                ),
            )
        )
    mixed = letters(draw, 2) + digits(draw, 2) + letters(draw, 2)
    return Value((mixed if draw.random() < 0.1 else code,))


def api_key(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a token in the published form of a well-known service."""
    kinds = (
        ("sk-", 48),
        ("ghp_", 36),
        ("glpat-", 20),
        ("xoxb-" + digits(draw, 11) + "-", 24),
        ("AIza", 35),
        ("sk_live_", 24),
        ("hf_", 34),
    )
    prefix, count = draw.choice(kinds)
    return Value(
        (prefix + letters(draw, count, _ALNUM),),
        frozenset(["sk", "ghp", "glpat", "xoxb", "live", "hf"]),
    )


def aws_key(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up an access key id of AWS."""
    return Value(("AK" + "IA" + letters(draw, 16, string.ascii_uppercase + "234567"),))


def private_key(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a private key in PEM form; its lines of base64 are what identifies."""
    lines = [letters(draw, 64, _ALNUM) for _ in range(draw.choice([3, 6]))]
    kind = draw.choice(["RSA ", "EC ", "OPENSSH ", ""]) + "PRIVATE " + "KEY"
    text = "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----"])
    return Value((text,), frozenset("begin end rsa ec openssh private key".split()))
