"""A judge's rewards teach a policy: the settings and formulae of GRPO and PPO, and the rules that stop a run."""
