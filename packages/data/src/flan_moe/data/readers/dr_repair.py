"""Program repair as DrRepair holds it: a jsonl of broken and corrected C++ programs.

``{"code_lines": [{"code", "indent"}], "gold_code_lines": [...], "gold_linenos": [0 or 1 per line],
"err_line": {"lineno", "msg"}}``; line numbers count from 0 (github.com/michiyasunaga/DrRepair).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flan_moe.data.readers.json_rows import json_rows, text_of
from flan_moe.data.readers.record import RawDataError, Record

# What the problem shows of the compiler's message: nothing, the message, the message with numbered
# lines, or the message as a comment in the line it is about.
Shown = Literal["no_errors", "plain_code", "line_numbers", "error_comments"]
INDENT = "  "


def read_dr_repair(file: Path, shown: Shown) -> Iterator[Record]:
    """The rows of a file.

    Raises:
        RawDataError: A row is not of this form; names it.
    """
    for where, row in json_rows(file):
        broken, fixed = _lines(row, "code_lines", where), _lines(row, "gold_code_lines", where)
        error = row.get("err_line")
        if not isinstance(error, dict) or not isinstance(error.get("lineno"), int):
            raise RawDataError(f"{where}: err_line: expected an object with 'lineno' and 'msg'")
        message, at = text_of(error, "msg", f"{where}: err_line"), error["lineno"]
        changed = row.get("gold_linenos")
        if not 0 <= at < len(broken) or not isinstance(changed, list) or changed.count(1) != 1:
            raise RawDataError(
                f"{where}: err_line.lineno is {at} and gold_linenos {changed!r}; expected a line "
                f"of the {len(broken)} and exactly one 1"
            )
        spot = changed.index(1)
        if len(changed) != len(broken) or len(fixed) != len(broken):
            raise RawDataError(
                f"{where}: {len(broken)} code_lines, {len(fixed)} gold_code_lines, {len(changed)} "
                "gold_linenos; expected as many of each"
            )
        yield _record(shown, broken, fixed, message, at, spot)


def _record(
    shown: Shown, broken: list[str], fixed: list[str], message: str, at: int, spot: int
) -> Record:
    code, target = "\n".join(broken), "\n".join(fixed)
    fields = {"code": code, "message": message}
    if shown == "no_errors":
        del fields["message"]
    elif shown == "line_numbers":
        fields["code"] = "\n".join(f"{n} {line}" for n, line in enumerate(broken, start=1))
        fields["message"] = f"line {at + 1}: {message}"
        target = f"{spot + 1}: {fixed[spot].strip()}"
    elif shown == "error_comments":
        lines = [*broken]
        lines[at] += f" // error: {message}"
        fields = {"code": "\n".join(lines)}
    return Record(input=code, targets=(target,), fields=tuple(fields.items()))


def _lines(row: dict[str, Any], key: str, where: str) -> list[str]:
    lines = row.get(key)
    if not isinstance(lines, list) or not lines:
        raise RawDataError(f"{where}: {key}: expected a list of lines")
    texts = []
    for number, line in enumerate(lines):
        place = f"{where}: {key}[{number}]"
        if not isinstance(line, dict) or not isinstance(line.get("indent"), int):
            raise RawDataError(f"{place}: expected an object with 'code' and 'indent'")
        texts.append(INDENT * line["indent"] + text_of(line, "code", place))
    return texts
