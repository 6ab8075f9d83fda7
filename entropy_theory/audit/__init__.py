"""Does the theory hold in a real model? What ``entropy-theory audit`` does."""
