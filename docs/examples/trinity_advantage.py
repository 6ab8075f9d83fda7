"""A rule as Trinity-RFT's `advantage_fn`: put this file on PYTHONPATH and name `trinity_advantage.RuleAdvantage`."""

import torch

from entropy_theory.bridge.verl import check_batch_rule
from entropy_theory.control import TokenBatch, rule


class RuleAdvantage:
    """The advantages of `base`, one of Trinity's own functions, under an entropy-control rule."""

    def __init__(self, rule_spec: str = "clip-b", base: str | None = "grpo_verl", seed: int = 0) -> None:
        self.rule, self.state, self.generator = rule(rule_spec), None, torch.Generator().manual_seed(seed)
        check_batch_rule(self.rule)
        self.base = None
        if base is not None:
            from trinity.algorithm import ADVANTAGE_FN

            self.base = ADVANTAGE_FN.get(base)()

    def __call__(self, exps, **kwargs):
        """Score the batch of all ranks, which is here, before any update."""
        if self.base is not None:
            exps, _ = self.base(exps, **kwargs)
        found = exps.batch
        batch = TokenBatch(
            log_probs=found["old_log_probs"],
            entropy=found["entropys"],
            advantages=found["advantages"],
            completion_mask=found["response_mask"],
            old_log_probs=found["old_log_probs"],
            rollout_log_probs=found.get("rollout_log_probs", None),
            baseline=found.get("necs", None),
            rewards=found["token_level_rewards"].sum(dim=-1),
        )
        output = self.rule.apply(batch, generator=self.generator, state=self.state)
        self.state = output.state
        found["advantages"] = output.coefficients
        found["response_mask"] = (
            found["response_mask"] * output.counted_mask
        )  # dropped tokens leave the mean, as official
        return exps, output.metrics

    @classmethod
    def default_args(cls) -> dict:
        """What Trinity takes when the YAML has no `advantage_fn_args`."""
        return {"rule_spec": "clip-b"}

    @classmethod
    def compute_in_trainer(cls) -> bool:
        """Yes: the rule needs the trainer's entropy."""
        return True
