"""Reward functions, managers and environments for other trainers, one small file each, over a served judge.

    export VLGENRM_URL=http://judge:8000 VLGENRM_TOKEN=...

None needs its trainer to be imported, nor Ray, torch or vLLM. What happens where the judge gives no reward stands at
the top of each file: it is masked where the trainer can mask, else it raises, see `failures.py`.
"""
