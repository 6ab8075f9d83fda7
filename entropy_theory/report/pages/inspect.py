"""Rollouts as one page: every token coloured by what it does to entropy, the rule and its threshold switched there.

The data travel in two inert blocks: JSON, with what could end the block escaped, and the columns of numbers, one after
the other as little-endian arrays, compressed. The page runs one script, known to its content policy by its hash;
nothing else on it can run, and it may fetch nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from entropy_theory.report.pages.page import write_page

MANTISSA_BITS = 12
"""Kept of the statistics' 23 bits: a relative error of at most 2⁻¹³ = 1.2e-4, and the file shrinks by a half."""

LEVELS = 8
"""Shades of each colour; the style sheet says how much a level takes of the colour."""


def save_inspect_page(data: Mapping[str, Any], path: Path) -> int:
    """Write the page, whole or not at all.

    Args:
        data: ``page_data`` of the inspection: ``facts`` and ``lens`` for the text, ``payload`` for the script,
            ``columns`` of numbers by name.
        path: The HTML file.

    Returns:
        Its size in bytes.
    """
    from markupsafe import Markup

    columns = {
        name: rounded(values) if values.dtype == np.float32 and not name.startswith("coefficients") else values
        for name, values in data["columns"].items()
    }
    layout, packed = pack(columns)
    lens = data["lens"]
    still = [
        row["rule"]
        for row in lens["rows"][1:]
        if row["distance"] < 1e-6 and not row["dropped_share"] and not row["entropy_term"]
    ]
    ends = [row["total"][end] for row in lens["rows"] for end in ("low", "high")]
    script = _template("inspect.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    write_page(
        path,
        "inspect.html",
        {
            "facts": {**data["facts"], "verdict": verdict(data["lens"])},
            "lens": lens,
            "moving": [row for row in lens["rows"] if row["rule"] not in still],
            "still": still,
            "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'",
            "payload": inert_json({**data["payload"], "columns": layout}),
            "columns": Markup(packed),  # base64 alone
            "script": Markup(script),
            "style": Markup(_template("inspect.css").replace("%%LEVELS%%", _levels())),
        },
        filters={
            "milli": _milli,
            "share": _share,
            "whisker": lambda row: _whisker(row["total"], min(0.0, *ends), max(0.0, *ends)),
        },
    )
    return path.stat().st_size


def _template(name: str) -> str:
    return (files("entropy_theory.report") / "templates" / name).read_text(encoding="utf-8")


def _levels() -> str:
    """The two colour scales, mixed into whatever the page's background is."""
    shade = ".{}{} {{ background: color-mix(in oklab, var(--{}) calc({} * var(--mix)), transparent); }}"
    return "\n".join(
        shade.format(name[0], level, name, level) for name in ("fall", "rise") for level in range(1, LEVELS + 1)
    )


def _milli(value: float | None) -> str:
    if value is None:
        return "—"
    return "0.00" if abs(value) < 5e-6 else f"{1000 * value:+.2f}".replace("-", "−")


def _share(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form).replace("-", "−")


def _whisker(total: Mapping[str, float], low: float, high: float) -> Any:
    """Draw an interval as a line with a dot, beside a mark at zero."""
    from markupsafe import Markup

    def x(value: float) -> float:
        return round(100 * (value - low) / ((high - low) or 1.0), 2)

    way = "falls" if total["value"] < 0 else "rises"

    def line(start: float, end: float, top: int, bottom: int, name: str) -> str:
        ends = f'x1="{x(start)}" x2="{x(end)}" y1="{top}" y2="{bottom}"'
        return f'<line class="{name}" {ends} vector-effect="non-scaling-stroke" />'

    value = total["value"]
    return Markup(
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        + line(0.0, 0.0, 0, 10, "zero")
        + line(total["low"], total["high"], 5, 5, f"span {way}")
        + line(value, value, 1, 9, f"span {way}")
        + "</svg>"
    )


def inert_json(value: object) -> Any:
    r"""Write JSON that a script block can hold whatever its strings say.

    ``<``, ``>`` and ``&`` become escapes, so that neither ``</script>`` nor ``<!--`` can stand in it; so do the two
    line separators that are not allowed in older JavaScript strings.

    Raises:
        ValueError: A number is not finite.

    Example:
        >>> print(inert_json({"text": "</script><b>"}))
        {"text":"\u003c/script\u003e\u003cb\u003e"}
    """
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate is valid in JSON's escapes only; UTF-8 has none.
    text = "".join(f"\\u{ord(c):04x}" if c in "<>&\u2028\u2029" or "\ud800" <= c <= "\udfff" else c for c in text)
    return Markup(text)


def pack(columns: Mapping[str, np.ndarray]) -> tuple[list[tuple[str, str, int, int]], str]:
    """Put arrays one after the other, each at a multiple of 8 bytes, and compress them.

    Args:
        columns: Arrays of float32, uint8, uint16 or uint32 by name.

    Returns:
        The layout, (name, kind, offset in bytes, length) of each, and the bytes in base64.

    Example:
        >>> layout, text = pack({"a": np.arange(3, dtype=np.float32), "b": np.array([7], dtype=np.uint8)})
        >>> layout
        [('a', 'f4', 0, 3), ('b', 'u1', 16, 1)]
        >>> gzip.decompress(base64.b64decode(text))[16]
        7
    """
    layout, parts, offset = [], [], 0
    for name, values in columns.items():
        kind = f"{values.dtype.kind}{values.dtype.itemsize}"
        raw = values.astype(f"<{kind}").tobytes()
        layout.append((name, kind, offset, len(values)))
        parts.append(raw + b"\0" * (-len(raw) % 8))
        offset += len(parts[-1])
    # without the time: the same data are the same file
    return layout, base64.b64encode(gzip.compress(b"".join(parts), compresslevel=6, mtime=0)).decode()


def rounded(values: np.ndarray, bits: int = MANTISSA_BITS) -> np.ndarray:
    """Round float32 to fewer bits of mantissa, to the nearest; signs and zeros stay.

    Example:
        >>> rounded(np.array([0.1, -3.0, 0.0], dtype=np.float32)).tolist()
        [0.100006103515625, -3.0, 0.0]
    """
    drop = 23 - bits
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((raw + np.uint32(1 << (drop - 1))) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)


def verdict(lens: Mapping[str, Any]) -> str:
    """Say in a sentence which way an uncontrolled update would push entropy, and which quadrant does most of it.

    Args:
        lens: ``LensTable.to_dict()``.

    Example:
        >>> total = {"value": -0.02, "low": -0.03, "high": -0.01}
        >>> quadrants = {"q1": -0.03, "q2": 0.02, "q3": 0.01, "q4": -0.02, "none": 0.0}
        >>> print(verdict({"rows": [{"total": total, "quadrants": quadrants}]}))
        Without control this batch pushes mean entropy down: −0.020 [−0.030, −0.010] nats per unit step,
        most of it from Q1 (likely tokens, A > 0).
    """
    row = lens["rows"][0]
    value, low, high = (row["total"][name] for name in ("value", "low", "high"))
    interval = (
        f"{value:+.2g} [{low:+.2g}, {high:+.2g}]" if abs(value) < 1e-3 else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    interval = interval.replace("-", "−")
    if value == 0:
        return "Without control this batch does not move mean entropy, to first order."
    if low <= 0 <= high:
        return f"Without control the direction is not clear: {interval} nats of mean entropy per unit step."
    way = "down" if value < 0 else "up"
    sign = -1 if value < 0 else 1
    most = max(("q1", "q2", "q3", "q4"), key=lambda q: sign * row["quadrants"][q])
    kind = f"{'likely' if most in ('q1', 'q3') else 'unlikely'} tokens, A {'>' if most in ('q1', 'q2') else '<'} 0"
    return (
        f"Without control this batch pushes mean entropy {way}: {interval} nats per unit step, "
        f"most of it from {most.upper()} ({kind})."
    )
