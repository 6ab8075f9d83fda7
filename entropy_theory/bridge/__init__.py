"""The control rules inside real training loops."""
