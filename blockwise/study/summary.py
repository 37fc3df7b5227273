"""What a study's runs gave, `facts`, and what follows from these alone, `judged`: all of study.json."""

import math
from dataclasses import asdict
from itertools import chain
from statistics import mean

from blockwise.curves import speedups
from blockwise.study.config import tokens_of
from blockwise.study.plan import TWICE
from blockwise.study.results import five
from blockwise.study.rules import best_of_k, middle
from blockwise.study.space import NEAR_END, RATE, Axis
from blockwise.study.verdict import bad_starts, judge, look_levels, spread, verdict


def facts(study):
    """What study.json holds of the runs, before anything is concluded from it."""
    results = {run: study.result(run) or {"status": "not run"} for run in study.runs()}
    return {
        "places": {comparison: facts_of(study, comparison) for comparison in study.comparisons},  # by its first name
        "runs": [
            {"run": run.label, "folder": str(run.folder), "floor": run.config.resolved().min_lr}
            | {key: result.get(key) for key in ("status", "loss", "test", "seconds", "spikes")}
            for run, result in results.items()
        ],
        "tokens": sorted({tokens_of(study.settings[c, study.config.baseline]) for c in study.comparisons}),
        "study": asdict(study.config) | {"search_seed": study.search_seed},
        "commits": sorted({v["commit"] for r in results.values() if (v := r.get("versions")) and v["commit"]}),
    }


def facts_of(study, comparison):
    """{arm: what its runs gave in this comparison}"""
    config, arms, seeds = study.config, {}, study.seeds_of(comparison)
    for arm in [a for c, a in study.settings if c == comparison]:
        searched, _, points = study.searched(comparison, arm)
        best, *others = points or [None]
        losses, *theirs = study.losses(comparison, arm, seeds[arm]) or [{}]
        final = chain(*study.at_best(comparison, arm, seeds[arm])[:1])
        done = {str(run.seed): result for run in final if (result := study.result(run)) and result["loss"] is not None}
        middle, deviation = spread(losses)
        arms[arm] = {
            "role": "baseline" if arm == config.baseline else "twice" if arm.endswith(TWICE) else "arm",
            "sweep": sweep_of(study, searched, best),
            "best": best and best[0],
            "tuned": dict(zip(study.keys(comparison, arm), best[1:], strict=True)) if best else {},
            "search": [
                {"point": list(run.point), "seed": run.seed, "budget": run.budget} | point_of(study, [run])
                for run in searched
            ],
            "losses": stated(losses),
            "mean": middle, "deviation": deviation,
            "spikes": {seed: result["spikes"] for seed, result in done.items()},
            "curves": {seed: [[step, five(loss)] for step, loss in r["curve"]] for seed, r in done.items()},
        }  # fmt: skip
        if theirs:
            arms[arm]["runners_up"] = [
                {"point": list(point), "losses": stated(own)} for point, own in zip(others, theirs, strict=True)
            ]
    return arms


def stated(losses):
    """{seed: loss} as JSON has it: None for a run that diverged."""
    return {str(seed): loss if math.isfinite(loss) else None for seed, loss in losses.items()}


def losses_of(one):
    """[{seed: loss} of an arm's best point, and of each runner-up] by its facts, inf: diverged; empty without runs."""
    points = [one["losses"], *(point["losses"] for point in one.get("runners_up", ()))]
    return [{s: math.inf if x is None else x for s, x in losses.items()} for losses in points if losses]


def sweep_of(study, searched, best):
    """One entry a learning rate: by coordinates at the best of the other keys; of all points of a Sobol search."""
    points, budget = {}, study.config.rungs[0][0] if study.axes else 1.0
    for run in searched:
        if run.budget == budget and (study.axes or best is None or run.values == best[1:]):
            points.setdefault(run.point, []).append(run)
    return sorted((point_of(study, runs) for runs in points.values()), key=lambda point: point["learning_rate"])


def point_of(study, runs):
    """What is shown of one point, whose runs differ in their seed: their mean, no loss if one diverged."""
    results = [study.result(run) or {"status": "not run", "loss": None, "spikes": None} for run in runs]
    worst = next((r for r in results if r["status"] != "finished"), results[0])
    loss = mean(r["loss"] for r in results) if worst["status"] == "finished" else None
    return {
        "learning_rate": runs[0].rate, "floor": runs[0].config.resolved().min_lr, "status": worst["status"],
        "loss": loss, "spikes": worst["spikes"],
    }  # fmt: skip


def judged(found):
    """All of study.json from its facts: tests, speedups, the luck of each search, and the verdicts in words."""
    study, looks = found["study"], tuple(found["study"].get("looks", ()))
    margin, baseline = study.get("margin", 0.01), study["baseline"]
    for arms in found["places"].values():
        rivals = {arm: one for arm, one in arms.items() if one["role"] != "twice"}
        losses = {arm: losses_of(one) for arm, one in rivals.items()}
        levels = {arm: look_levels(looks)[looks.index(len(own[0]))] for arm, own in losses.items() if looks and own}
        tests = judge(losses, baseline, margin, levels)
        twice = arms.get(baseline + TWICE, {"curves": {}})["curves"]
        for arm, one in arms.items():
            one["ends"] = ends(one, arm, study)
            one["bad_starts"] = bad_starts(*losses[arm][:1]) if losses.get(arm) else 0
            one["best_of"] = luck(one)
            if arm in tests:
                one["test"] = tests[arm]
                one["speedup"] = speedups(one["curves"], twice) or speedup_by_rungs(tests[arm], arms[baseline])
    return {"verdicts": verdicts(found)} | {key: value for key, value in found.items() if key != "verdicts"}


def verdicts(found):
    study, comparisons = found["study"], found["places"]
    others = [arm for arm in study["arms"] if arm != study["baseline"]]
    lines = [verdict(arm, study["baseline"], [arms[arm]["test"] for arms in comparisons.values()]) for arm in others]
    if len(study["seeds"]) == 1:
        lines = [f"One seed ran, so there is no verdict; gaps to {study['baseline']} are in the tables."]
    arms_of = [(name, arm, one) for name, arms in comparisons.items() for arm, one in arms.items()]
    near = [f"{arm} ({', '.join([*filter(None, [name]), *one['ends']])})" for name, arm, one in arms_of if one["ends"]]
    if near:
        lines.append(f"The best lies near an end of its range, so it may be undertuned: {listed(near)}.")
    single = [arm for arm in study["arms"] if all(len(arms[arm]["sweep"]) <= 1 for arms in comparisons.values())]
    if single:
        lines.append(f"Not tuned, run at one learning rate only: {listed(single)}.")
    return lines


def listed(names, most=12):
    return ", ".join(names) if len(names) <= most else f"{len(names)} arms, as the tables show"


def ends(one, arm, study):
    """["beta2 0.99", ...]: what of an arm's best lies within 10 % of an end of its range; 0 is none to go beyond."""
    if one["best"] is None or not (one["sweep"] and len(one["sweep"]) > 1):
        return []
    best = {RATE: one["best"], **one.get("tuned", {})}
    if study.get("search") == "sobol":
        values = best | {RATE: one["best"] / middle(study["learning_rates"][arm])}  # its range is one of factors
        axes = [Axis.of(key, words) for key, words in study["space"].items() if key in best]
        near = [axis.key for axis in axes if not NEAR_END < axis.quantile(values[axis.key]) < 1 - NEAR_END]
        return [f"{key} {best[key]:g}" for key in near]
    ranges = {RATE: [point["learning_rate"] for point in one["sweep"]], **study.get("tune", {})}
    return [f"{k} {v:g}" for k, v in best.items() if v and v in (min(ranges[k]), max(ranges[k]))]


def luck(one):
    """{k: median best of k points} of what an arm's first rung found; {} where runs of its search failed."""
    rows, points = one.get("search", one["sweep"]), {}
    for row in rows if one["best"] is not None else ():
        if row.get("budget", 1) == rows[0].get("budget", 1):
            point = tuple(row.get("point", [row["learning_rate"]]))
            points.setdefault(point, []).append(math.inf if row["loss"] is None else row["loss"])
    return best_of_k([mean(losses) for losses in points.values()])


def speedup_by_rungs(test, baseline):
    """How many times fewer steps an arm needs, by what the baseline gained from a shorter budget.

    {"ratio", "low", "high", "seeds"} from the gap and its interval, straight in log steps; None without such a rung.
    """
    budgets = {}
    for row in baseline.get("search", ()):
        if row["loss"] is not None:
            budgets.setdefault(row.get("budget", 1), {}).setdefault(tuple(row["point"]), []).append(row["loss"])
    lowest = {budget: min(map(mean, points.values())) for budget, points in budgets.items()}
    short = max((budget for budget in lowest if budget < 1), default=None)
    if not test or test["low"] is None or short is None or 1 not in lowest or lowest[short] <= lowest[1]:
        return None
    slope = (lowest[short] - lowest[1]) / -math.log(short)
    ratio, high, low = (math.exp(-test[key] / slope) for key in ("gap", "low", "high"))
    return {"ratio": ratio, "low": low, "high": high, "seeds": test["seeds"]}
