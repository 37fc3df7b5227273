# python compare.py config/study_seeds.py
# The best points of study_budget at 20 tokens a parameter on fresh seeds, none of which took part in a search: how
# large is the lead of `fitted`, and how often is a start bad? Besides, an arm that was never tuned: Muon on the
# matrices in float32 (most CPUs emulate bfloat16), and AdamW on the tables at a rate of their own. Compiled, as the
# runs of study_budget at this budget were.
max_iters = 6720
include("study_budget.py")
out_dir = "out/study_seeds"
compile = True
eval_iters = 128  # four times the text of study_budget: 131,072 tokens a half
baseline = "adamw"
arms = {
    "adamw": f"--blockwise=False --beta2=0.99 --warmup_iters={max_iters // 2} --weight_decay=0",
    "fitted": f"--lr_rule=fitted --beta2=0.99 --warmup_iters={3 * max_iters // 10} --weight_decay=0",
    "muon, fast tables": "--optimizer=muon --lr_mult.Emb=24 --lr_mult.Head=24 --lr_mult.QK=8 --lr_mult.VO=8 "
    f"--lr_mult.FFN=8 --lr_mult.Norm=4 --warmup_iters={max_iters // 10} --weight_decay=0 --muon_dtype=float32",
}
learning_rates = {"adamw": [8e-3], "fitted": [4e-3], "muon, fast tables": [1e-3]}
untuned = ["adamw", "fitted", "muon, fast tables"]
tune = {}
seeds = list(range(101, 117))
