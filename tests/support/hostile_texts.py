"""What a language model might write to harm whoever reads it: ten thousand texts, the same every time."""

from __future__ import annotations

import random
from collections.abc import Iterator

MARKER = "HOSTILE_MARKER"

_FIXED = (
    f"__import__('os').system('touch {MARKER}')",
    f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{MARKER}",
    f"{{% import os %}}{{{{ os.system('touch {MARKER}') }}}}",
    f"!!python/object/apply:os.system ['touch {MARKER}']",
    f"$(touch {MARKER})`touch {MARKER}`; touch {MARKER} #",
    "9**9**9",
    "1" + "0" * 4300 + "*7",
    "2**" * 500 + "2",
    "1/0=1;#1",
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg/onload=document.title='owned'>",
    "</td></table></body></html><script>document.title='owned'</script>",
    "<!-- ",
    "--><script>document.title='owned'</script>",
    "]]><style>body{display:none}</style>",
    "<a href=\"javascript:document.title='owned'\">#5</a>",
    "&#60;script&#62;document.title='owned'&#60;/script&#62;",
    "[bold red]rich markup[/bold red] [link=file:///etc/passwd]x[/link]",
    "| a | b |\n|---|---|\n| `c` | <b>d</b> |",
    "\x1b[2J\x1b[H\x1b]0;owned\x07\x1b[31m",
    "\r\rpassword: \b\b\b\x00\x7f\x9b31m",
    "\u202e1+1\u202c\u2066\u2069\u200b\u200f\ufeff",
    "a" + "\u0301" * 3000,
    "\ud800\udfff\udc00",
    "\U000e0041\U0010ffff\ue000",
    "１＋１＝２；＃２",
    "٣+٤=٧;#٧",
    "#" * 5000,
    "####" * 2000,
    "<<" * 3000 + "1" + ">>" * 3000,
    "(" * 5000 + "1" + ")" * 5000,
    "-" * 5000 + "1=1;#1",
    "1+" * 3000 + "1=3001;#3001",
    "1=1;" * 5000 + "#1",
    "#1e999999999 #nan #inf #-0 #+1",
    "\\boxed{" * 1000 + "1" + "}" * 1000,
    "%s%n%x {0.__class__} {}",
    "=cmd|'/c calc'!A1",
    "",
    " \t\n" * 100,
)
_ALPHABET = "0123456789+-*/=;#()<>&\"'`|{}[]\\\n\t\x00\x1b\u202e\u0301é漢😀 "


def hostile_texts(count: int = 10_000, *, seed: int = 0) -> Iterator[str]:
    """Yield fixed traps, mixtures of them, random characters, broken UTF-8, and a few lines of one megabyte."""
    chance = random.Random(seed)
    yield from _FIXED
    for number in range(count - len(_FIXED)):
        kind = number % 500
        if kind == 0:
            yield chance.choice(["1+1=2;", "#", "(", "9**9", "<b>", "\u202e", "a"]) * 1_000_000
        elif kind < 150:
            yield "".join(chance.choices(_ALPHABET, k=chance.randint(0, 400)))
        elif kind < 250:
            yield bytes(chance.randrange(256) for _ in range(200)).decode("utf-8", errors="surrogateescape")
        else:
            yield chance.choice(["", "7+5=12;#", "#### "]).join(chance.choices(_FIXED, k=chance.randint(1, 3)))[:20_000]
