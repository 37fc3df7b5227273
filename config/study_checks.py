# python compare.py config/study_checks.py
# Does the result of study_budget.py at 1.25 tokens a parameter hold with another text and another end of the schedule?
# Python's library as the second corpus, and a floor of a tenth of each rate. AdamW and `fitted` with the values that
# were found on Wikipedia, their rates swept again; docs/studies says how to prepare both texts.
include("study_budget.py")
out_dir = "out/study_checks"

arms = {
    "adamw": f"--blockwise=False {_adamw_found}",
    "fitted": "--lr_rule=fitted",
    "fitted, as it is": "--lr_rule=fitted",
}
learning_rates = {"adamw": [2e-3, 4e-3, 8e-3], "fitted": [4e-3, 8e-3, 1.6e-2], "fitted, as it is": [1e-3]}
untuned = ["fitted, as it is"]
tune = {}
conditions = {"Python library to 0": "--dataset=pylib_bpe1024", "Wikipedia to a tenth": "--min_lr_ratio=0.1"}
floors = {"floor as named": ""}
