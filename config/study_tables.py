# python compare.py config/study_tables.py
# python compare.py --max_iters=1680 config/study_tables.py --out_dir=out/study_tables_5
# What does one number do: Emb and Head at 1 to 16 times the rate of everything else, at AdamW's rate of 4e-3 and its
# usual warmup of a tenth, against the AdamW that study_budget tuned in full at 1.25 and 5 tokens a parameter (4e-3 and
# 8e-3, a warmup of half the run)? Fresh seeds, which no search has seen; nothing of the tables' arms was swept.
include("study_budget.py")
out_dir = "out/study_tables"
eval_iters = 128  # four times the text of study_budget: 131,072 tokens a half
weight_decay = 0.0
_short = max_iters <= 420
arms = {"adamw": f"--blockwise=False --warmup_iters={max_iters // 2}"}
_multiples = (1, 4, 8, 2, 16) if _short else (4, 16)
arms |= {f"tables {n}x": f"--lr_rule=tables --lr_mult.Emb={n} --lr_mult.Head={n}" for n in _multiples}
learning_rates = {arm: [4e-3] for arm in arms} | {"adamw": [4e-3 if _short else 8e-3]}
untuned = list(arms)
tune = {}
seeds = [101, 102, 103]
