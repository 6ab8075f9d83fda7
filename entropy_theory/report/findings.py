"""Sentences that state what the numbers of a run say, whichever way they fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_theory.intervals import Interval

BASE = "GRPO"
NO_ADVANTAGE = (
    "No step of the uncontrolled arm had an advantage: the completions of each prompt were rewarded alike, so GRPO had "
    "nothing to learn from, and there is no predicted slope to compare."
)


def span(interval: Interval, form: str = ".2f") -> str:
    """Write a mean with its 95 % t-interval.

    Example:
        >>> from entropy_theory.intervals import t_interval
        >>> span(t_interval([0.2, 0.3, 0.25]))
        '0.25 [0.13, 0.37]'
        >>> span(t_interval([0.2]))
        '0.20'
    """
    if interval.low is None or interval.high is None:
        return format(interval.mean, form)
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def arms(
    finals: Mapping[str, Mapping[str, Interval]], matched: str = "Clip_B", answers: str = "distinct_right"
) -> list[str]:
    """State how the arms of a demo ended.

    Args:
        finals: Per arm and metric (``entropy``, ``reward``, ``distinct_right``, ``dropped_share``) the interval over
            seeds of the last steps' mean. The uncontrolled arm is ``GRPO``, the matched random mask ``Random mask``.
        matched: The arm that a random mask is matched to.
        answers: ``distinct_right``, or ``distinct`` where a prompt has one right answer.

    Returns:
        One sentence per comparison; each says whether the intervals are apart.
    """
    sentences = []
    base = finals[BASE]["entropy"]
    for arm, metrics in finals.items():
        if arm == BASE:
            continue
        entropy = metrics["entropy"]
        share = metrics["dropped_share"].mean
        dropped = (
            f"dropped {share:.1%} of the tokens of the last steps" if share else "dropped nothing in the last steps"
        )
        ratio = base.mean / entropy.mean if entropy.mean else float("inf")
        sentence = (
            f"{arm} {dropped} and ended at an entropy of {span(entropy)} nats; plain GRPO ended at {span(base)}, "
            f"which is {ratio:.2f} of it. {_apart(base, entropy)}"
        )
        if arm == "Random mask" and entropy.apart_from(finals[matched]["entropy"]):
            sentence += (
                f" In each batch it drops as many tokens as {matched} would there, and from {matched} it is apart: "
                "what counts is not how many tokens are dropped but which."
            )
        sentences.append(sentence)
    for arm in (matched,):
        ours, theirs = finals[arm].get(answers), finals[BASE].get(answers)
        if ours and theirs:
            counted = "Distinct right answers" if answers == "distinct_right" else "Distinct answers"
            sentences.append(
                f"{counted} among the completions of one prompt: {span(ours, '.1f')} under {arm}, "
                f"{span(theirs, '.1f')} under plain GRPO. {_apart(ours, theirs)}"
            )
    reward = ", ".join(f"{arm} {span(metrics['reward'])}" for arm, metrics in finals.items())
    sentences.append(f"Reward at the end: {reward}. The demo makes no claim about accuracy.")
    return sentences


def headline(
    finals: Mapping[str, Mapping[str, Interval]],
    controlled: str = "Clip_B",
    model: str = "a small language model",
) -> str:
    """Say in one sentence how entropy ended with and without control."""
    base, ours = finals[BASE]["entropy"], finals[controlled]["entropy"]
    dropped = finals[controlled]["dropped_share"].mean
    if base.mean < ours.mean:
        return (
            f"In {model} trained by GRPO, entropy fell to {base.mean:.2f} nats without control and "
            f"to {ours.mean:.2f} under {controlled}, which dropped {dropped:.1%} of the tokens of the last steps."
        )
    return (
        f"In this run {controlled} did not keep entropy up: it ended at {ours.mean:.2f} nats, plain GRPO at "
        f"{base.mean:.2f}."
    )


def centring(samplers: Sequence[Mapping[str, Any]]) -> list[str]:
    """State how far the mean of S_c lies from zero, in standard errors, under each sampler."""
    sentences = []
    for result in samplers:
        verdict = "as good as zero" if abs(result["z"]) < 3 else "not zero"
        sentences.append(
            f"Toy policies, {result['sampler']}, {result['tokens']:,} tokens: mean S = {result['discriminant']:+.2e}, "
            f"mean S_c = {result['centered']:+.2e} ± {result['standard_error']:.0e}, z = {result['z']:+.1f}: {verdict}."
        )
    return sentences


def order(result: Mapping[str, float]) -> str:
    """State how the error of the first order shrinks with the step."""
    return (
        f"The error of the prediction falls with the step size at slope {result['slope']:.4f} on "
        f"logarithmic axes (standard error {result['slope_error']:.0e}); first order means 2."
    )


def official_thresholds(shares: Mapping[str, float]) -> str:
    """State what the official thresholds would have dropped in this run.

    Example:
        >>> official_thresholds({"clip-b": 0.0001, "clip-v": 0.0})
        'At the official thresholds, asked at every step of the GRPO arm, clip-b would have dropped 0.010% of the...'
    """
    parts = " and ".join(
        f"{rule} {'would have dropped ' if i == 0 else ''}{share:.3%}{' of the tokens' if i == 0 else ''}"
        for i, (rule, share) in enumerate(shares.items())
    )
    verdict = (
        "They drop almost nothing at this scale, which is why the arms use lower ones."
        if max(shares.values()) < 1e-3
        else "That is not nothing: at this scale they act too."
    )
    return f"At the official thresholds, asked at every step of the GRPO arm, {parts}. {verdict}"


def predictions(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """State how well the first order predicts exact changes."""
    return [
        f"{title}: at a step of {result['step_size']:g} the realised change is {result['slope']:.5f} "
        f"times the predicted one (standard error {result['slope_error']:.0e})."
        for title, result in results.items()
    ]


def four_conditions(conditions: list[Mapping[str, Any]]) -> str:
    """State how many of the four signs came out as predicted."""
    right = sum(c["observed_sign"] == c["predicted_sign"] for c in conditions)
    weakest = min(abs(c["z"]) for c in conditions)
    return (
        f"{right} of {len(conditions)} signs are as predicted; the weakest is {weakest:.0f} standard errors from zero."
    )


def _apart(a: Interval, b: Interval) -> str:
    if a.half_width is None or b.half_width is None:
        return "One seed: there is no interval to compare."
    return (
        "The intervals are apart."
        if a.apart_from(b)
        else "The intervals overlap, so this run does not tell them apart."
    )


def steps(slopes: Sequence[float], realised: Sequence[float]) -> str:
    """State how well the predicted slope of each training step agrees with the change that the step made.

    Args:
        slopes: −mean(g S_c) of each step that had an advantage.
        realised: Mean change of entropy on the step's own tokens, nats.

    Example:
        >>> steps([-0.1, -0.2, 0.1], [-0.01, -0.03, -0.02])
        'The predicted slope had the sign of the realised change at 2 of 3 steps; entropy fell at 3 of them.'
    """
    if not slopes:
        return NO_ADVANTAGE
    right = sum(a * b > 0 for a, b in zip(slopes, realised, strict=True))
    return (
        f"The predicted slope had the sign of the realised change at {right} of {len(slopes)} steps; entropy fell at "
        f"{sum(change < 0 for change in realised)} of them."
    )


def audit(result: Mapping[str, Any]) -> list[str]:
    """State how well the tabular theory predicts the entropy of a model with shared parameters, and where it fails.

    Args:
        result: What ``audit.run.audit`` returns.
    """
    from entropy_theory.report.figures.audit import ARMS

    return [f"{ARMS.get(arm, arm)}: {_audited(measured, result, arm)}" for arm, measured in result["arms"].items()]


def audit_tokens(result: Mapping[str, Any]) -> list[str]:
    """State how far −S_c says which token moves mean entropy in a model with shared parameters, and the mean's parts.

    Args:
        result: What ``audit.run.audit`` returns.
    """
    from entropy_theory.report.figures.audit import ARMS

    sentences = [f"{ARMS.get(arm, arm)}: {_token_view(arms)}" for arm, arms in result["arms"].items()]
    if any(arms["tokens"]["crossed"] is None for arms in result["arms"].values()):
        sentences.append(
            "Influence on crossed contexts was left out: a step needs two prompt groups with a valid token or more."
        )
    return sentences


def _token_view(measured: Mapping[str, Any]) -> str:
    def shown(name: str, form: str = ".2f") -> str:
        numbers = measured["tokens"]["same"]["plain"]["overall"][name]
        if numbers is None:
            return "none"
        return f"{numbers['value']:{form}} [{numbers['low']:{form}}, {numbers['high']:{form}}]"

    means = measured["means"]
    held_out = means["held_out"]
    shift, error = held_out["shift"]["mean"], held_out["shift"]["error"]
    spread = "" if error is None else f" ± {error:.2g}"
    return (
        f"over tokens, −S_c against the influence on mean entropy has a rank correlation of {shown('spearman')} "
        f"(Pearson {shown('pearson')}) and the same sign at {shown('sign_agreement', '.0%')}; of the strongest 3 % it "
        f"names {shown('strongest_shared', '.0%')}. The tabular sum has the sign of the change of mean entropy at "
        f"{means['token']['signs_right']} of {means['steps']} steps, this gradient's first order at "
        f"{means['now']['signs_right']}, the whole first order at {means['in_all']['signs_right']}. In rollouts of "
        f"other prompts a step changes mean entropy by {held_out['fixed']['mean']:.2g} at fixed contexts and by "
        f"{shift:.2g}{spread} (standard error) as other contexts are visited."
    )


def _audited(measured: Mapping[str, Any], result: Mapping[str, Any], arm: str) -> str:
    def shown(name: str, kind: str, where: str = "predictors", form: str = ".0%") -> str:
        numbers = measured[where][name] if kind == "share" else measured[where][name][kind]
        if numbers is None:
            return "none"
        return f"{numbers['value']:{form}} [{numbers['low']:{form}}, {numbers['high']:{form}}]"

    sign = measured["predictors"]["token"]["sign_agreement"]
    if sign is None:
        return "no position had both a prediction and a change."
    chance = ", no better than chance" if sign["low"] <= 0.5 <= sign["high"] else ""
    parts = {name.upper(): rows["token"]["sign_agreement"] for name, rows in measured["quadrants"].items()}
    parts |= {f"H from {d['low']:.2g} to {d['high']:.2g}": d["token"]["sign_agreement"] for d in measured["deciles"]}
    ranked = sorted((e["value"], name) for name, e in parts.items() if e is not None and name != "NONE")
    (low, worst), (high, best) = ranked[0], ranked[-1]
    rows = [row for row in result["steps"] if row["arm"] == arm]
    right = sum(row["mean_token"] * row["mean_realised"] > 0 for row in rows)
    fell = sum(row["mean_realised"] < 0 for row in rows)
    return (
        f"what a token does to its own position has the sign of the tabular prediction at "
        f"{shown('token', 'sign_agreement', 'own_effect')} of the positions (rank correlation "
        f"{shown('token', 'rank_correlation', 'own_effect', '.2f')}), and is {shown('own', 'share', 'pieces')} of the "
        f"first-order change there; sharing with other contexts is {shown('sharing', 'share', 'pieces')}, earlier "
        f"steps are {shown('momentum', 'share', 'pieces')}. The prediction has the sign of the whole realised change "
        f"at {shown('token', 'sign_agreement')}{chance} (R² {shown('token', 'r2_fitted')} with a fitted step), best at "
        f"{best} ({high:.0%}), worst at {worst} ({low:.0%}), and the sign of the batch mean, which fell at {fell} of "
        f"{len(rows)} steps, at {right}; the first order in the parameters has the sign at "
        f"{shown('parameters', 'sign_agreement')} (R² {shown('parameters', 'r2_fitted')})."
    )
