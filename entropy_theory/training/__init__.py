"""What ``entropy-theory train`` does: a GRPO run with a control rule, and what it makes of failures."""
