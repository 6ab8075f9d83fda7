"""The implementations behind `token_statistics`: one readable reference and two fused kernels."""
