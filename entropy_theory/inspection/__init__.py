"""Which tokens of recorded rollouts move entropy? What ``entropy-theory inspect`` does."""
