# python compare.py config/study_budget.py
# That is 1.25 tokens a parameter; 5 and 20:
# python compare.py --max_iters=1680 config/study_budget.py --out_dir=out/study_budget_5
# python compare.py --max_iters=6720 config/study_budget.py --out_dir=out/study_budget_20
# Does the lead of blockwise rates survive the budgets at which people train? AdamW, `fitted` and the paper's
# multipliers are tuned in full at each budget (rate, beta2, warmup, weight decay, one after the other); the rules from
# the shape come as they are, at a base of 1e-3, their decay by a law. A LLaMA of 0.34M parameters on English Wikipedia;
# docs/studies says how to prepare it. Rates are chosen on one half of the validation text and reported on the other.
from blockwise.rules import decay_for_budget

max_iters = max_iters if max_iters < 600000 else 420
include("shapes/llama_1m_study.py")
out_dir = "out/study_budget"
dataset = "wikipedia_bpe1024"
n_embd, n_head, n_inner = 64, 2, 192

min_lr = 0.0  # for every arm: a floor is another knob, and 0 favours none
weight_decay, beta2 = 0.1, 0.95

eval_interval = max_iters // 5
log_interval = 20
test_loss = True

_tokens, _parameters = 1024 * max_iters, 344_640
_law = f"--weight_decay={decay_for_budget(1e-3, max_iters, _tokens, _parameters):.3g}"
_matrices_only = "--wd_mult.Emb=0 --wd_mult.Head=0 --wd_mult.Norm=0 --wd_mult.QK=0.25"  # 1/rate, as the other rules

# At the longer budgets each search begins near where the one before it ended and leaves out what lost by far there;
# only `fitted`, the best of the rules, and the paper's multipliers take part
_short, _long = max_iters <= 420, max_iters > 1680
_warm = f"--warmup_iters={3 * max_iters // 10} --weight_decay=0"
_adamw_found = f"--warmup_iters={max_iters // 2} --weight_decay=0"  # at each budget; other studies begin with it too
_from = {
    "adamw": "" if _short else _adamw_found,
    "fitted": "" if _short else f"{_warm} --beta2={0.99 if _long else 0.95}",
    "paper": "" if _short else _warm,
}
arms = {
    "adamw": f"--blockwise=False {_from['adamw']} {'--beta2=0.99' if _short else ''}",
    "fitted": f"--lr_rule=fitted {_from['fitted']}",
    "paper": _from["paper"],
}
if _long:  # with what was found at 5 tokens a parameter; its own search would cost 50 minutes
    arms["paper, as at 5"] = arms.pop("paper")
    arms["adamw at half the rate"] = f"--blockwise=False {_from['adamw']} --beta2=0.99"  # at 8e-3 one seed stays behind
else:  # untuned, `fitted` is no better than AdamW from 5 tokens a parameter on
    arms["fitted, as it is"] = "--lr_rule=fitted"
    arms["fitted, decay by a law"] = f"--lr_rule=fitted {_law} {_matrices_only}"
if _short:  # with 4 layers completep is mup
    arms |= {rule: f"--lr_rule={rule} {_law}" for rule in ("relative", "mup", "large_vocab", "nanochat")}
learning_rates = {
    "adamw": [2e-3, 4e-3, 8e-3] if _short else [4e-3, 8e-3, 1.6e-2],
    "fitted": [5e-4, 1e-3, 2e-3] if _short else [2e-3, 4e-3, 8e-3],
    "paper": [2.5e-4, 5e-4, 1e-3] if _short else [5e-4, 1e-3, 2e-3],
}
learning_rates = {arm: grid for arm, grid in learning_rates.items() if arm in arms}
untuned = [arm for arm in arms if arm not in learning_rates]
learning_rates |= {arm: [4e-3 if arm.startswith("adamw") else 1e-3] for arm in untuned}
tune = {
    "beta2": [0.95, 0.99] if _long else [0.95, 0.99, 0.999],
    "warmup_iters": [share * max_iters // 100 for share in ((2, 10, 30, 50) if _short else (10, 30, 50))],
}
if not _long:  # where 0.1 cost every arm 0.03 at 5 tokens a parameter, 0 stays
    tune["weight_decay"] = [0.0, 0.1, 0.5, 1.0] if _short else [0.0, 0.1, 0.5]
seeds = [1, 2, 3]
floors = {"floor 0": ""}
