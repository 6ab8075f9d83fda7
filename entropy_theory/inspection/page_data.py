"""An inspection as data: what the page draws, and the table of tokens for those who plot themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entropy_theory import records
from entropy_theory.control import RuleOutput, TokenBatch, rule
from entropy_theory.control.effects import influence_effects
from entropy_theory.errors import missing_extra
from entropy_theory.inspection.influence import influence_agreement
from entropy_theory.inspection.inspect import Inspection, RuleView, effects

CAP_QUANTILE = 0.98
"""Of the effects' sizes: where the colour scale ends, so that a few extremes do not bleach the rest."""

DISAGREEMENTS = 20
"""Tokens that the page lists because D and S_c disagree on them."""

CONTEXT = 40
"""Characters of the text before such a token."""

_SYMBOLS = {"mu": "μ", "share": "ρ"}
_QUADRANTS = ("none", "q1", "q2", "q3", "q4")


def page_data(inspection: Inspection) -> dict[str, Any]:
    """Lay everything out as the page reads it: texts, numbers by rule and setting, columns of numbers by token.

    Of more completions than the configuration allows, whole groups are drawn at random; totals are always over all.
    """
    config, batch, mask = inspection.config, inspection.batch, inspection.batch.completion_mask
    items, groups = inspection.rollouts.items, inspection.rollouts.group_ids
    shown = _drawn(groups, config.max_completions, config.seed)
    inside = mask.clone()
    inside[torch.from_numpy(~np.isin(np.arange(len(items)), shown))] = False

    def flat(values: Tensor, dtype: type = np.float32) -> np.ndarray:
        return values[inside].numpy().astype(dtype)

    kinds: dict[tuple[int, str], int] = {}
    types = [
        kinds.setdefault(pair, len(kinds))
        for row in shown
        for pair in zip(inspection.sequences[row].ids, inspection.sequences[row].pieces, strict=True)
    ]
    prompts: dict[str, int] = {}
    completions = [
        {
            "number": int(row) + 1,
            "group": int(groups[row]) + 1,
            "reward": items[row].reward,
            "advantage": float(np.float32(batch.advantages[row])),
            "prompt": prompts.setdefault(_prompt_text(items[row].prompt), len(prompts)),
        }
        for row in shown
    ]
    assert batch.baseline is not None  # scored
    columns = {
        "starts": np.cumsum([0, *(len(inspection.sequences[row].ids) for row in shown)]).astype(np.uint32),
        "type": np.array(types, dtype=np.uint16 if len(kinds) < 1 << 16 else np.uint32),
        "quadrant": flat(batch.quadrants(), np.uint8),
        "log_prob": flat(batch.log_probs),
        "entropy": flat(batch.entropy),
        "baseline": flat(batch.baseline),
        "centered": flat(batch.centered_scores()),
    }
    facts, payload = None, None
    if batch.influence is not None:
        columns["influence"] = flat(batch.influence)
        facts, payload = _influence_data(inspection)
    unmodified = effects(None, batch).total
    none = rule("none").apply(batch)
    rules = []
    for number, view in enumerate(inspection.rules):
        entry, own = _rule_data(view, batch, none)
        rules.append(entry)
        columns |= {f"{name}{number}": flat(values, dtype) for name, (values, dtype) in own.items()}
    environment = records.environment()
    notes = list(inspection.assumptions)
    if len(shown) < len(items):
        notes.append(
            f"Drawn below: {len(shown):,} of {len(items):,} completions, whole groups at random (seed {config.seed}). "
            "Totals by quadrant and the lens are over all of them."
        )
    return {
        "facts": {
            "source": inspection.rollouts.source,
            "model": config.model,
            "temperature": inspection.temperature,
            "completions": len(items),
            "groups": int(groups.max()) + 1,
            "tokens": inspection.lens["tokens"],
            "entropy": inspection.lens["entropy"],
            "warnings": inspection.warnings,
            "influence": facts,
            "notes": notes,
            "provenance": [
                ("configuration", records.configuration_hash(config, ignore=("out", "scores", "save_batch"))),
                ("commit", environment["commit"] or "outside a checkout"),
                *(
                    (name, environment["packages"][name])
                    for name in ("torch", "transformers", "trl")
                    if name in environment["packages"]
                ),
                ("device", environment["device"]),
            ],
        },
        "lens": inspection.lens,
        "payload": {
            "tokens": inspection.lens["tokens"],
            "shares": inspection.lens["shares"],
            "drawn": len(shown) < len(items),
            "cap": _cap(unmodified[mask]),
            "start": 1 if config.rule else 0,
            "none": [_totals(unmodified, batch, int(none.denominator), 0)],
            "completions": completions,
            "prompts": list(prompts),
            "types": [
                {"id": token, "text": piece, "special": token in inspection.special_ids} for token, piece in kinds
            ],
            "rules": rules,
            "influence": payload,
        },
        "columns": columns,
    }


def _cap(values: Tensor) -> float:
    """Where the colour scale of some effects ends."""
    sizes = values.abs().numpy()
    sizes = sizes[sizes > 0]
    return float(np.quantile(sizes, CAP_QUANTILE)) if len(sizes) else 1.0


def _influence_data(inspection: Inspection) -> tuple[dict[str, Any], dict[str, Any]]:
    """How D agrees with −S_c/n over all tokens, and the tokens on which they disagree most."""
    batch, mask = inspection.batch, inspection.batch.completion_mask
    assert batch.influence is not None
    count = int(mask.sum())
    influence = batch.influence[mask].double()
    tabular = -batch.centered_scores()[mask].double() / count
    g = rule("none").apply(batch).coefficients[mask]
    moved, predicted = influence_effects(g, influence), effects(None, batch).gradient[mask] / count
    opposite = (moved * predicted < 0).nonzero()[:, 0].numpy()
    distance = (moved - predicted).abs().numpy()[opposite]
    rows, positions = (index.numpy() for index in mask.nonzero(as_tuple=True))
    listed = []
    for token in opposite[np.argsort(-distance, kind="stable")[:DISAGREEMENTS]]:
        row, position = int(rows[token]), int(positions[token])
        pieces = inspection.sequences[row].pieces
        listed.append(
            {
                "completion": row + 1,
                "position": position,
                "before": "".join(pieces[:position])[-CONTEXT:],
                "text": pieces[position],
                "advantage": float(g[token]),
                "tabular": float(predicted[token]),
                "influence": float(moved[token]),
            }
        )
    facts = {
        "plain": influence_agreement(tabular.numpy(), influence.numpy()),
        "weighted": influence_agreement(predicted.numpy(), moved.numpy()),
        "total": float(moved.sum()) / count,
        "opposite": len(opposite),
        "listed": len(listed),
        "moving": int((moved != 0).sum()),
    }
    return facts, {"cap": _cap(moved), "disagreements": listed}


def _rule_data(
    view: RuleView, batch: TokenBatch, none: RuleOutput
) -> tuple[dict[str, Any], dict[str, tuple[Tensor, type]]]:
    """What the page knows about a rule, and its columns."""
    out, scan = view.output, view.scan
    entry: dict[str, Any] = {"spec": str(view.rule), "live": view.rule.phase == "live", "dropped": False, "same": False}
    if scan is not None:
        entry |= {
            "parameter": scan.parameter.replace("_", " "),
            "symbol": _SYMBOLS.get(scan.parameter, scan.parameter.replace("_", " ")),
            "values": scan.values,
            "own": scan.own,
            "totals": _totals_by_setting(view, batch),
            "same": not any(scan.dropped),
        }
        return entry, {"scores": (scan.scores, np.uint8)}
    columns: dict[str, tuple[Tensor, type]] = {}
    if not torch.equal(out.coefficients, none.coefficients):
        columns["coefficients"] = (out.coefficients, np.float32)
    if out.entropy_coefficients is not None:
        columns["extra"] = (effects(view, batch).entropy, np.float32)
    dropped = int(out.metrics["dropped"])
    entry |= {
        "dropped": dropped > 0,
        "same": not columns,
        "totals": [_totals(effects(view, batch).total, batch, int(out.denominator), dropped)],
    }
    return entry, columns


def _totals(values: Tensor, batch: TokenBatch, denominator: int, dropped: int) -> dict[str, float]:
    """Σ ΔH_t over each quadrant and in all, over the rule's own denominator."""
    mask, numbers = batch.completion_mask, batch.quadrants().numpy()
    scale = 1.0 / max(denominator, 1)
    sums = scale * np.bincount(numbers[mask], values[mask].numpy(), len(_QUADRANTS))
    shares = dict(zip(_QUADRANTS, sums.tolist(), strict=True))
    return shares | {"total": float(sums.sum()), "denominator": denominator, "dropped": dropped}


def _totals_by_setting(view: RuleView, batch: TokenBatch) -> list[dict[str, float]]:
    """The totals at every setting: a token counts where its score does not exceed the setting's place."""
    scan = view.scan
    assert scan is not None
    mask, width = batch.completion_mask, len(scan.values) + 1
    place = batch.quadrants()[mask].long() * width + scan.scores[mask].long()
    sums = np.bincount(place.numpy(), effects(None, batch).total[mask].numpy(), len(_QUADRANTS) * width)
    kept = sums.reshape(len(_QUADRANTS), width).cumsum(axis=1)[:, :-1] / np.maximum(scan.denominators, 1)
    return [
        dict(zip(_QUADRANTS, kept[:, k].tolist(), strict=True))
        | {"total": float(kept[:, k].sum()), "denominator": scan.denominators[k], "dropped": scan.dropped[k]}
        for k in range(len(scan.values))
    ]


def _drawn(groups: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Rows of whole groups, drawn at random until the limit is reached, in file order; at least one group, cut to it.

    Example:
        >>> _drawn(np.array([0, 0, 1, 1, 2, 2]), 4, seed=0).tolist()
        [0, 1, 4, 5]
    """
    if len(groups) <= limit:
        return np.arange(len(groups))
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    sizes = np.bincount(groups)[order].cumsum()
    chosen = order[: max(1, int((sizes <= limit).sum()))]
    return np.flatnonzero(np.isin(groups, chosen))[:limit]


def _prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def write_table(inspection: Inspection) -> None:
    """Write one row per token to the configured .csv or .parquet file, whole or not at all.

    Columns: completion, group, reward, advantage, position, token_id, token, log_prob, prob, entropy, discriminant,
    baseline, centered_discriminant, quadrant (0 where A = 0 or S_c = 0), effect (ΔH per unit step without control);
    where D was measured, influence (D) and tabular_influence (−S_c/n); and for each rule its coefficient g, kept
    (masks) and effect.

    Raises:
        ImportError: pandas, or for parquet pyarrow, is not installed (extra ``train``).
    """
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "train") from None
    batch, mask = inspection.batch, inspection.batch.completion_mask
    sequences = inspection.sequences
    rows, positions = (index.numpy() for index in mask.nonzero(as_tuple=True))
    groups, rewards = (
        inspection.rollouts.group_ids,
        np.array([i.reward for i in inspection.rollouts.items], dtype=float),
    )

    def flat(values: Tensor) -> np.ndarray:
        return values[mask].numpy()

    table: dict[str, Any] = {
        "completion": rows,
        "group": groups[rows],
        "reward": rewards[rows],
        "advantage": flat(batch.token_advantages),
        "position": positions,
        "token_id": [token for s in sequences for token in s.ids],
        "token": [piece for s in sequences for piece in s.pieces],
        "log_prob": flat(batch.log_probs),
        "prob": flat(batch.log_probs.exp()),
        "entropy": flat(batch.entropy),
        "discriminant": flat(batch.scores()),
        "baseline": flat(batch.baseline) if batch.baseline is not None else math.nan,
        "centered_discriminant": flat(batch.centered_scores()),
        "quadrant": flat(batch.quadrants()),
        "effect": flat(effects(None, batch).total),
    }
    if batch.influence is not None:
        table |= {"influence": flat(batch.influence), "tabular_influence": flat(-batch.centered_scores() / len(rows))}
    for view in inspection.rules:
        table[f"coefficient[{view.rule}]"] = flat(view.output.coefficients)
        if view.output.keep_mask is not None:
            table[f"kept[{view.rule}]"] = flat(view.output.keep_mask)
        table[f"effect[{view.rule}]"] = flat(effects(view, batch).total)
    frame = pandas.DataFrame(table)
    out = inspection.config.out
    with records.written_whole(out) as temporary:
        if out.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            try:
                frame.to_parquet(temporary, index=False)
            except ImportError:
                raise missing_extra("pyarrow", "train") from None
