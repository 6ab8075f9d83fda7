"""How completions were sampled: what a log of texts lacks and a later reader needs, in a file beside the log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from entropy_theory import records
from entropy_theory.errors import invalid

FILE = "sampling.json"


@dataclass(frozen=True)
class Sampling:
    """What a run sampled with; None where it is not known.

    Attributes:
        temperature: T of the policy that sampled.
        max_completion_length: The length limit, in tokens.
        end_token_ids: Tokens that end a completion.
        chat_template_kwargs: Further arguments of the chat template.
        tools: JSON schemas of the tools that the template was given.
        reward_columns: The reward functions, as the log names them.
        reward_weights: The weight of each.
        scale_rewards: What the rewards' deviation was taken over: "group", "batch" or "none".
    """

    temperature: float | None = None
    max_completion_length: int | None = None
    end_token_ids: list[int] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    reward_columns: list[str] | None = None
    reward_weights: list[float] | None = None
    scale_rewards: str | None = None

    def write(self, folder: Path) -> None:
        """Write the file into the folder of the log."""
        records.write_json(folder / FILE, self)

    @classmethod
    def read(cls, folder: Path) -> Sampling:
        """Read the file in the folder of a log; everything is None when there is none.

        Raises:
            ValueError: The file is broken, or a value is of another type.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as name:
            ...     Sampling(temperature=0.7).write(Path(name))
            ...     Sampling.read(Path(name)).temperature, Sampling.read(Path(name, "elsewhere")) == Sampling()
            (0.7, True)
        """
        path = folder / FILE
        if not path.is_file():
            return cls()
        values, kinds = records.read_record(path), get_type_hints(cls)
        kinds = {name: kind.__args__[0] for name, kind in kinds.items()}
        for name, value in values.items():
            if name not in kinds:
                raise invalid(str(path), f"the names {', '.join(kinds)}", name)
            kind = getattr(kinds[name], "__origin__", kinds[name])
            accepted = (int, float) if kind is float else kind
            if value is not None and (isinstance(value, bool) or not isinstance(value, accepted)):
                raise invalid(f"{path}, {name}", kind.__name__, repr(value)[:60])
        return cls(**values)
