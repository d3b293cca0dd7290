r"""The formulas of docstrings as TeX.

Docstrings write formulas as one types them, so that ``help`` can be read in a terminal:
``alpha_V += eta_V K_Q (1 - alpha_A alpha_V) alpha_A``. The site shows the same formulas set. The
notation is small: names of Greek letters, ``_`` and ``^`` with a letter, a word, a number or
something in brackets behind them, ``1^T`` for a row of ones, ``<A, B>_mu`` for an inner product,
``(x)`` for a tensor product, ``P~`` for a tilde, and single letters for everything else.
"""

import re
from collections.abc import Callable, Iterator

# Names of arguments and functions, although they could be formulas.
CODE = ("l1", "grad", "lambda", "int", "max", "min", "sum", "log", "exp")
GREEK = (
    *("alpha", "beta", "gamma", "delta", "eta", "theta", "kappa", "lambda", "mu", "nu", "rho"),
    *("sigma", "tau", "phi", "Delta", "Phi", "Pi", "Sigma", "infinity"),
)
FUNCTIONS = ("sum", "log", "exp", "sinh", "max", "min", "int", "cos")
OPERATORS = ("Tr", "tr", "Cov", "diag")
SUBSCRIPTS = ("VP", "AQ", "block", "flat", "hat", "ij", "jh", "position", "yx", "gg", "bj")
BLANKS = ("ds", "dt", "dp")
COMMANDS = {
    **{name: f"\\{name} " for name in (*GREEK, *FUNCTIONS)},
    **{name: rf"\operatorname{{{name}}}" for name in OPERATORS},
    "grad": r"\nabla ",
    "Pr": r"\Pr",
    "infinity": r"\infty ",
}
# Around words that are set as text, while a line is written.
OPEN, CLOSE = "\x01", "\x02"
SIGNS = {
    "<-": r"\leftarrow ",
    "->": r"\to ",
    "-+": r"\mp ",
    "<=": r"\le ",
    ">=": r"\ge ",
    "!=": r"\ne ",
    "+=": r"\mathrel{+}= ",
    "-=": r"\mathrel{-}= ",
    "(x)": r"\otimes ",
    "...": r"\dots ",
    "..": r"\dots ",
    "*": r"\cdot ",
    "~": r"\sim ",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "_": r"\_",
}

TOKEN = re.compile(
    r"""
    (?P<gap>\ {2,})
  | (?P<label>\((?:eq\.\ [A-Z]?\.?[\d.]+|ours)\))
  | (?P<half>(?<![\w)])1/2(?!\w))
  | (?P<words>[a-z]{3,}'s|i\.i\.d\.|[a-z]{2,}(?:-[a-z]{2,})+)
  | (?P<number>\d+(?:\.\d+)?)
  | (?P<name>[A-Za-z]+)
  | (?P<sign><-|->|-\+|<=|>=|!=|\+=|-=|\(x\)|\.{2,3}|.)
    """,
    re.VERBOSE,
)


SCRIPT = re.compile(r"-?\d+(?:[a-z](?![a-z]))?|-?[A-Za-z]+(?:,[a-z](?![a-z]))?")


class NotMathsError(ValueError):
    """A text with words in it that are no names of a formula."""


class _Writer:
    """Writes one line; with ``words`` what is no name of a formula is set as text."""

    def __init__(self, text: str, *, words: bool) -> None:
        self.text, self.words = text, words
        self.place = 0
        self.open_angles = 0

    def write(self) -> str:
        written = "".join(self._parts())
        # Neighbouring words are one text.
        return re.sub(rf"{CLOSE}\s*{OPEN}", " ", written).strip()

    def _parts(self) -> Iterator[str]:
        while self.place < len(self.text):
            match = TOKEN.match(self.text, self.place)
            assert match is not None
            self.place = match.end()
            yield self._one(match)

    def _one(self, match: re.Match[str]) -> str:
        text = match.group()
        written: dict[str | None, Callable[[], str]] = {
            "gap": self._gap,
            "words": lambda: self._word(text),
            "label": lambda: rf"\text{{{text}}}",
            "half": lambda: r"\tfrac{1}{2}",
            "number": lambda: self._dressed(self._ones(text)),
            "name": lambda: self._name(text),
            "sign": lambda: self._sign(text),
        }
        return written[match.lastgroup]()

    def _gap(self) -> str:
        """Blanks between formulas; those that line signs up under each other mean nothing."""
        lines_up = re.match(r"=|\+=|-=|[+-] ", self.text[self.place :])
        return " " if lines_up or self.text[: self.place].rstrip()[-1:] in "+=" else r"\qquad "

    def _ones(self, text: str) -> str:
        """A 1 that is a vector: one with a transpose or a size behind it, or before such a one."""
        rest = self.text[self.place :]
        is_vector = text == "1" and re.match(r"\^T|_[TN]|(?: 1\^T)", rest)
        return r"\mathbf{1}" if is_vector else text

    def _name(self, text: str) -> str:
        rest = self.text[self.place :]
        if text == "sqrt" and rest.startswith("("):
            return rf"\sqrt{{{self._inner(self._bracket())}}}"
        if text == "E" and re.match(r"\[| [|<]| grad| [hn]_o", rest):
            return r"\mathbb{E}\,"
        if text == "l" and rest.startswith("1"):
            self.place += 1
            return r"\ell_1 "
        command = COMMANDS.get(text)
        if command is not None and not (text in FUNCTIONS and rest.startswith(" over")):
            return self._dressed(command)
        is_article = text == "a" and re.match(r" [a-z]{3,}", rest) and not _is_name(rest)
        if (len(text) == 1 and not is_article) or text in BLANKS:
            return self._dressed(text + " ")
        return self._word(text)

    def _word(self, text: str) -> str:
        if not self.words:
            raise NotMathsError(text)
        return f"{OPEN}{text}{CLOSE}"

    def _dressed(self, base: str) -> str:
        """A name with its tilde, prime, subscript and superscript."""
        if self._next() == "~":
            self.place += 1
            base = rf"\tilde{{{base.strip()}}} "
        while self._next() in ("_", "^", "'"):
            sign = self._next()
            self.place += 1
            if sign == "'":
                base = base.rstrip() + "'"
                continue
            script = self._script(sign)
            if script == "hat":
                base = rf"\hat{{{base.strip()}}}"
            else:
                base = f"{base.rstrip()}{sign}{{{script}}}"
        return base

    def _script(self, sign: str) -> str:
        """What stands behind ``_`` or ``^``."""
        after = self._next()
        if after == "{":
            return self._inner(self._bracket())
        if after == "(":
            inside = self._bracket()
            # q^(k) is a column; T^(-1/2) a power, which needs no brackets once it is set.
            is_label = sign == "^" and re.fullmatch(r"[a-z]", inside)
            script = f"({inside})" if is_label else self._inner(inside)
            return script.replace(r"\tfrac{1}{2}", "1/2")
        match = SCRIPT.match(self.text, self.place)
        if match is None:
            raise NotMathsError(self.text[self.place :])
        self.place = match.end()
        return self._named(match.group(), sign)

    def _named(self, text: str, sign: str) -> str:
        if text in ("T", "-T") and sign == "^":
            return text.replace("T", r"\top")
        name, comma, index = text.partition(",")
        if name.lstrip("-") in GREEK:
            return name.replace(name.lstrip("-"), f"\\{name.lstrip('-')}") + comma + index
        if name in ("min", "max"):
            return rf"\{name}{comma}{index}"
        if name == "hat" or re.fullmatch(r"-?(?:\d+[a-z]?|[A-Za-z])", name):
            return text
        if name in SUBSCRIPTS:
            return text if len(name) == 2 else rf"\text{{{name}}}"
        if not self.words:
            raise NotMathsError(text)
        return rf"\text{{{text}}}"

    def _bracket(self) -> str:
        """What is inside of the bracket that begins here; goes on behind it."""
        depth, start = 0, self.place
        for place in range(start, len(self.text)):
            depth += (self.text[place] in "({[") - (self.text[place] in ")}]")
            if depth == 0:
                self.place = place + 1
                return self.text[start + 1 : place]
        raise NotMathsError(self.text[start:])

    def _inner(self, text: str) -> str:
        return _Writer(text, words=self.words).write()

    def _next(self) -> str:
        return self.text[self.place : self.place + 1]

    def _sign(self, text: str) -> str:
        if text == "|":
            return self._bar()
        if text == "<" and self._next() not in ("", " "):
            self.open_angles += 1
            return r"\langle "
        if text == ">" and self.open_angles:
            self.open_angles -= 1
            return self._dressed(r"\rangle ")
        if text in ")]}":
            return self._dressed(SIGNS.get(text, text))
        if text == "*" and self.text[: self.place].endswith("mu *"):
            return r"\odot "
        return SIGNS.get(text, text)

    def _bar(self) -> str:
        """A bar with blanks around it is read "given"; others are norms."""
        before = self.text[: self.place - 1]
        if before.endswith(" ") and self._next() == " ":
            return r"\mid "
        return self._dressed("|")


def tex(text: str, *, words: bool = False) -> str:
    """A line of a docstring as TeX.

    Args:
        text: the formula as it is typed.
        words: whether words may stand in it, which are set as text.

    Raises:
        NotMathsError: there is a word in it, and ``words`` is false.
    """
    written = _Writer(text, words=words).write()
    return written.replace(OPEN, r"\text{ ").replace(CLOSE, " }")


def _is_name(rest: str) -> bool:
    """Whether the word that comes next is a name of formulas."""
    word = re.match(r" ([a-z]+)", rest)
    return word is not None and word.group(1) in (*GREEK, *FUNCTIONS, "sqrt", "grad", "diag")


def looks_like_maths(text: str) -> bool:
    """Whether what stands between double backticks is a formula, and no code."""
    if re.search(r"[\"`@#\\$]|\w\.[A-Za-z]|\w=\S|\*\*|--|==|^'", text) or text in CODE:
        return False
    if not re.search(r"[A-Za-z]", re.sub(r"\b\d+e-?\d+\b", "", text)):
        return False
    try:
        tex(text)
    except NotMathsError:
        return False
    return True
