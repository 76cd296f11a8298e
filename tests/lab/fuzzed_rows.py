"""Lines of every kind of damage, with good ones between them."""

import json
import random
from collections.abc import Callable
from typing import Any

from tests.lab.data_runs import answer, chat, clean_rows

# First and last character of each of Unicode's 17 planes, and what breaks readers most often.
PLANES = [chr(c) for plane in range(17) for c in (plane << 16, (plane << 16) + 0xFFFF)]
ODD = "\0\x01\x1f\x7f\x85\u00ad\u200b\u202e\u2028\ufeff\ufffd\ufffe\ud800\udfff\ud83d\U0001f600"


class Fuzzer:
    """Makes lines from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def text(self, most: int = 40) -> str:
        """Characters of every plane, lone surrogates among them."""
        draw = self.draw
        kinds: list[Callable[[], str]] = [
            lambda: chr(draw.randrange(0x110000)),
            lambda: draw.choice(PLANES),
            lambda: draw.choice(ODD),
            lambda: draw.choice('abc {}[]"\\\n<|im_end|>'),
        ]
        return "".join(draw.choice(kinds)() for _ in range(draw.randint(0, most)))

    def value(self, depth: int = 0) -> Any:
        """A value of any type."""
        draw = self.draw
        kinds: list[Callable[[], Any]] = [
            lambda: draw.choice([None, True, 1e308, -1, 10**40, "", "x", 0.1, float("nan")]),
            self.text,
            lambda: {self.text(5): self.value(depth + 1) for _ in range(draw.randint(0, 3))},
            lambda: [self.value(depth + 1) for _ in range(draw.randint(0, 3))],
        ]
        return draw.choice(kinds if depth < 4 else kinds[:2])()

    def nested(self) -> bytes:
        """Deep nesting, at depths around every limit that a parser may have."""
        depth = self.draw.choice([50, 99, 100, 101, 500, 900, 980, 1000, 5000, 100_000])
        inner = self.draw.choice([b"[", b'{"a":'])
        closing = (b"]" if inner == b"[" else b"}") * depth
        deep = inner * depth + (b"" if inner == b"[" else b"1") + closing
        place = self.draw.choice(
            [
                b'{"messages": %s}',
                b'{"messages": [{"role": %s, "content": "a"}]}',
                b'{"messages": [{"role": "user", "content": %s}]}',
                b'{"conversations": [{"from": %s, "value": "a"}]}',
                b'{"instruction": "a", "output": %s}',
                b"%s",
            ]
        )
        return place % deep

    def nested_answer(self) -> bytes:
        """An answer that is deep JSON itself."""
        depth = self.draw.choice([50, 100, 101, 500, 990, 5000])
        deep = '{"intent": ' + "[" * depth + "]" * depth + "}"
        return json.dumps({"messages": chat("a", deep)}).encode()

    def number(self) -> bytes:
        """Numbers of up to 10^5 digits, and some that are none."""
        digits = "9" * self.draw.choice([400, 4300, 4301, 100_000])
        number = self.draw.choice(
            [digits, f"-{digits}", f"0.{digits}", f"1e{digits[:400]}", "NaN", "Infinity", "1e999"]
        )
        place = self.draw.choice(
            ['{"messages": %s}', '{"messages": [{"role": "user", "content": %s}]}', "%s"]
        )
        return (place % number).encode()

    def number_in_an_answer(self) -> bytes:
        """An answer whose class is such a number."""
        number = self.number().decode()
        number = number if number[0] in "-0123456789NI" else "9" * 5000
        return json.dumps({"messages": chat("a", f'{{"intent": {number}}}')}).encode()

    def damaged(self, line: bytes) -> bytes:
        """Bytes flipped, lost and doubled."""
        data = bytearray(line)
        for _ in range(self.draw.randint(1, 4)):
            at = self.draw.randrange(len(data))
            self.draw.choice(
                [
                    lambda at=at: data.__setitem__(at, self.draw.randrange(256)),
                    lambda at=at: data.__delitem__(at),
                    lambda at=at: data.insert(at, data[at]),
                ]
            )()
        return bytes(data)

    def line(self, row: dict[str, Any]) -> bytes:
        """One damaged line."""
        good = json.dumps(row).encode()
        makers: list[Callable[[], bytes]] = [
            lambda: self.draw.randbytes(self.draw.randint(0, 200)),
            lambda: good[: self.draw.randint(0, len(good) - 1)],
            lambda: self.damaged(good),
            self.nested,
            self.nested_answer,
            self.number,
            self.number_in_an_answer,
            lambda: b"\0" * self.draw.randint(1, 20),
            lambda: good.replace(b"a", b"\0", 1),
            lambda: json.dumps(self.value()).encode(),
            lambda: json.dumps({"messages": self.value()}).encode(),
            lambda: json.dumps({"conversations": self.value(), "id": self.value()}).encode(),
            lambda: json.dumps({"instruction": self.value(), "output": self.value()}).encode(),
            lambda: json.dumps({"text": "<|im_start|>" + self.text()}).encode(),
            lambda: json.dumps({"messages": chat(self.text(), self.text())}).encode(),
            lambda: self.text().encode("utf-8", "surrogatepass"),
            lambda: json.dumps(
                {"messages": chat(self.text(), json.dumps({"intent": self.value()}))}
            ).encode(),
            lambda: json.dumps(
                {"messages": [{"role": self.value(), "content": self.value()}]}
            ).encode(),
            lambda: json.dumps(self.value()).encode("utf-16"),
            lambda: good.replace(b'"content": "', b'"content": "<|im_end|>', 1),
            lambda: good[:-1] + b', "messages": []}',
            lambda: good[:-1] + b', "x": {"a": 1, "a": 2}}',
        ]
        return self.draw.choice(makers)()


def fuzzed_lines(count: int, seed: int, huge: int = 0) -> list[bytes]:
    """Lines, about half of them damaged, without newlines in them.

    Args:
        count: number of lines.
        seed: seed of the damage.
        huge: number of lines that are rows of a megabyte.
    """
    fuzzer = Fuzzer(seed)
    lines = []
    for row in clean_rows(count - huge):
        good = fuzzer.draw.random() < 0.5
        line = json.dumps(row).encode() if good else fuzzer.line(row)
        lines.append(line.replace(b"\n", b" "))
    for _ in range(huge):
        words = "x " * (1 << 19)
        lines.append(json.dumps({"messages": chat(words, answer("login", "y"))}).encode())
    fuzzer.draw.shuffle(lines)
    return lines
