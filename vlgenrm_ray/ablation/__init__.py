"""Ablation: how much each part of the method adds to the judge, measured on the same pairs at equal cost.

config.py     the recipe of an ablation: factors with named variants, the cells to compare, seeds, test pairs
plan.py       cells and the addresses of their stages: cells of equal settings share a stage
labels.py     labels of the pairs by the judge itself, or by the ground truth
examples.py   an equal number of examples for every cell
trainers.py   ways to make a judge of labelled pairs: the table that `trainer` of a variant names
critique_dpo.py   DPO on pairs of critiques, one of these ways
run.py        runs the cells, one after another; resumable
diagnosis.py  reasons behind the numbers: margins, swapped images, effect of the evidence check
results.py    results of a cell, and their statistics over items and seeds
tables.py     console tables and CSV
"""
