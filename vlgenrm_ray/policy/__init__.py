"""Training of a policy against rewards: GRPO and its variants, RLOO and PPO. See README.md in this folder."""
