# python compare.py config/study_starts.py
# What makes a start bad at 20 tokens a parameter? The two worst of the first six seeds of AdamW in study_seeds, and its
# best: with QK alone at 4 times the rate, and with the initial weights of the bad seed but the text of the good one.
include("study_seeds.py")
out_dir = "out/study_starts"
arms = {
    "adamw": arms["adamw"],
    "QK at 4x": arms["adamw"].replace(
        "--blockwise=False", "--lr_rule=tables --lr_mult.Emb=1 --lr_mult.Head=1 --lr_mult.QK=4"
    ),
    "text of seed 106": f"{arms['adamw']} --data_seed=106",
}
learning_rates = {arm: learning_rates["adamw"] for arm in arms}
untuned = list(arms)
seeds = [101, 105, 106]
