"""A step of many policies as compiled loops over each of them: `policy` for one policy, `steps` for a bank."""
