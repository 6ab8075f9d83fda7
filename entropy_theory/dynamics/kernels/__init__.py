"""A step of many policies as compiled loops: `policy` for one policy, `steps` and `whole_steps` for a bank."""
