"""Rewards that a policy can be trained by: judges, Python functions, and weighted sums of them.

Start with `reward.Reward`, the protocol that all of them implement, and `config.build_reward`, which builds the reward
of a run from its settings. A new kind of reward is one class and one line in `config.REWARD_KINDS`; without a change to
this package, `function: module:name` takes any Python function.
"""
