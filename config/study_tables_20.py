# python compare.py config/study_tables_20.py
# How long does one number last: study_tables' arms at 20 tokens a parameter, beside the tuned AdamW of study_seeds and
# on its first four seeds. At AdamW's 4e-3 and a warmup of a tenth as there, with the beta2 of 0.99 that helps here.
include("study_seeds.py")
out_dir = "out/study_tables_20"
_tables = f"--lr_rule=tables --beta2=0.99 --warmup_iters={max_iters // 10} --weight_decay=0"
arms = {"adamw": arms["adamw"]} | {f"tables {n}x": f"{_tables} --lr_mult.Emb={n} --lr_mult.Head={n}" for n in (4, 16)}
learning_rates = {arm: [4e-3] for arm in arms} | {"adamw": [8e-3]}
untuned = list(arms)
seeds = [101, 102, 103, 104]
