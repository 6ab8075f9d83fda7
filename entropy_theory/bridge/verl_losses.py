"""The documented name of `entropy_theory.bridge.verl.losses`."""

from entropy_theory.bridge.verl.losses import check_live_rule, loss_name, policy_loss, register_loss

__all__ = ["check_live_rule", "loss_name", "policy_loss", "register_loss"]
