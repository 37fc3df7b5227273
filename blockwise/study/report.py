"""What a study says: its plan before it runs; afterwards study.json and report.md, the verdict first.

The report follows from study.json alone: `again` makes that of an old study with today's words.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median

from blockwise import UserError, print0
from blockwise.curves import SPIKE_DEVIATIONS, SPIKE_HEIGHT, SPIKE_ROWS, speedups
from blockwise.files import write_text
from blockwise.study.plan import TWICE, floor_of, shown_point, tokens_of
from blockwise.study.rules import best_of_k, quadratic_best
from blockwise.study.space import NEAR_END, RATE, Axis
from blockwise.study.verdict import ALPHA, BAD_START, bad_starts, judge, look_levels, sentence, spread, verdict


def print_plan(study):
    config, runs = study.config, study.runs()
    for comparison in study.comparisons:
        print0(comparison)
        for arm in config.arms:
            if config.search == "sobol":
                keys = "nothing" if arm in config.untuned else ", ".join((RATE, *study.keys(comparison, arm)))
                print0(f"  {arm + ':':<20} {keys}, the rate around {middle_of(config, arm):g}")
                continue
            start = study.start(comparison, arm)
            rates = sorted(config.learning_rates[arm])
            swept = [study.run_of(comparison, arm, (rate, *start), study.search_seed) for rate in rates]
            rates = ", ".join(f"{run.rate:g} (to {floor_of(run)})" for run in swept)
            print0(f"  {arm + ':':<20} learning rate (to its floor) {rates}")
    for key, values in config.tune.items():
        print0(f"  {key + ':':<20} {', '.join(f'{value:g}' for value in values)}, tuned from the arm's own")
    for axis in study.axes.values():
        scale = " (log)" if axis.log else ""
        print0(f"  {axis.key + ':':<20} {axis.low:g} to {axis.high:g}{scale}")
    if study.axes:
        print0(f"the search, from seed {study.search_seed} on: {config.points} points of each arm, {rungs_of(config)}")
    todo = sum(tokens_of(run.config) for run in study.todo()) + study.future_tokens()
    tokens = todo + sum(tokens_of(run.config) for run in runs if study.result(run))
    single = sorted({tokens_of(settings) for (_, arm), settings in study.settings.items() if not arm.endswith(TWICE)})
    twice = f"; {config.baseline} again with twice the steps" if config.twice else ""
    looks = f", a look after {', '.join(map(str, config.looks))}" if config.looks else ""
    sizes = " or ".join(f"{n:,}" for n in single)
    print0(f"a run: {sizes} tokens; {len(config.seeds)} seeds at each arm's best{looks}{twice}")
    grows = "" if study.axes else f"; a grid whose best lies at an end {extended(asdict(config))}"
    print0(f"at least {tokens:,} tokens in all{grows}")
    timed = [(tokens_of(run.config), study.result(run)["seconds"]) for run in runs if study.result(run)]
    speeds = [tokens / seconds for tokens, seconds in timed if seconds]
    if speeds:
        hours = todo / median(speeds) / 3600
        print0(f"{len(timed)} runs are done; the rest: {hours:.1f} h, divided by the number of runs side by side")
    else:
        print0("time: known once the first run is done (--max_iters=50 --out_dir=out/try gives a quick idea)")


def rungs_of(config):
    """Each rung in words."""
    rungs = [f"{share:g} of the steps with {n:g} seeds, the best {keep:g} go on" for share, n, keep in config.rungs]
    return "; ".join(rungs)


def middle_of(config, arm):
    return math.exp(mean(map(math.log, config.learning_rates[arm])))


def extended(study):
    return f"is extended, by up to {study['extensions']} rates" if study["extensions"] else "is left as it is"


# ---------------------------------------------------------------------------------------------------------------------
# study.json: the facts of the runs, and what follows from them


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
        "commits": sorted({commit for run in results if (commit := commit_of(run))}),
    }


def facts_of(study, comparison):
    """{arm: what its runs gave in this comparison}"""
    config, arms, seeds = study.config, {}, study.seeds_of(comparison)
    for arm in [a for c, a in study.settings if c == comparison]:
        searched, _, best = study.searched(comparison, arm)
        losses, final = study.losses(comparison, arm, seeds[arm]), study.at_best(comparison, arm, seeds[arm])
        done = {str(run.seed): result for run in final if (result := study.result(run)) and result["loss"] is not None}
        middle, deviation = spread(losses or {})
        arms[arm] = {
            "role": "baseline" if arm == config.baseline else "twice" if arm.endswith(TWICE) else "arm",
            "sweep": sweep_of(study, searched, best),
            "best": best and best[0],
            "tuned": dict(zip(study.keys(comparison, arm), best[1:], strict=True)) if best else {},
            "search": [
                {"point": list(run.point), "seed": run.seed, "budget": run.budget} | point_of(study, [run])
                for run in searched
            ],
            "losses": {str(seed): loss if math.isfinite(loss) else None for seed, loss in (losses or {}).items()},
            "mean": middle, "deviation": deviation,
            "spikes": {seed: result["spikes"] for seed, result in done.items()},
            "curves": {seed: [[step, five(loss)] for step, loss in r["curve"]] for seed, r in done.items()},
        }  # fmt: skip
    return arms


def five(number):
    """Five digits, which is what a curve is good for."""
    return float(f"{number:.5g}")


def sweep_of(study, searched, best):
    """One entry a learning rate: by coordinates at the best of the other keys; of all points of a Sobol search."""
    if study.axes:
        points = {}
        for run in searched:
            if run.budget == study.config.rungs[0][0]:
                points.setdefault(run.point, []).append(run)
        return sorted((point_of(study, runs) for runs in points.values()), key=lambda p: p["learning_rate"])
    runs = [run for run in searched if best is None or run.values == best[1:]]
    return [point_of(study, [run]) for run in sorted(runs, key=lambda run: run.rate)]


def point_of(study, runs):
    """What is shown of one point, whose runs differ in their seed: their mean, no loss if one diverged."""
    results = [study.result(run) or {"status": "not run", "loss": None, "spikes": None} for run in runs]
    worst = next((r for r in results if r["status"] != "finished"), results[0])
    loss = mean(r["loss"] for r in results) if worst["status"] == "finished" else None
    floor = runs[0].config.resolved().min_lr
    point = {"learning_rate": runs[0].rate, "floor": floor, "status": worst["status"], "loss": loss}
    return point | {"spikes": worst["spikes"]}


def commit_of(run):
    """The project's commit with which a run was made, by its config.json."""
    try:
        return json.loads((run.folder / "config.json").read_text())["commit"]
    except (OSError, ValueError, KeyError):
        return None


def judged(found):
    """All of study.json from its facts: tests, speedups, the luck of each search, and the verdicts in words."""
    study, looks = found["study"], tuple(found["study"].get("looks", ()))
    margin, baseline = study.get("margin", 0.01), study["baseline"]
    for arms in found["places"].values():
        rivals = {arm: one for arm, one in arms.items() if one["role"] != "twice"}
        losses = {
            arm: {s: math.inf if x is None else x for s, x in one["losses"].items()} or None
            for arm, one in rivals.items()
        }
        levels = {arm: look_levels(looks)[looks.index(len(own))] for arm, own in losses.items() if looks and own}
        tests = judge(losses, baseline, margin, levels)
        twice = arms.get(baseline + TWICE, {"curves": {}})["curves"]
        for arm, one in arms.items():
            one["ends"] = ends(one, arm, study)
            one["bad_starts"] = bad_starts(losses.get(arm) or {})
            one["best_of"], one["quadratic"] = luck(one, arm, study)
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
    near = [
        f"{arm} ({', '.join([*filter(None, [name]), *one['ends']])})"
        for name, arms in comparisons.items()
        for arm, one in arms.items()
        if one["ends"]
    ]
    if near:
        lines.append(f"The best lies near an end of its range, so it may be undertuned: {listed(near)}.")
    single = [arm for arm in study["arms"] if all(len(arms[arm]["sweep"]) <= 1 for arms in comparisons.values())]
    if single:
        lines.append(f"Not tuned, run at one learning rate only: {listed(single)}.")
    return lines


def ends(one, arm, study):
    """["beta2 0.99", ...]: what of an arm's best lies within 10 % of an end of its range; 0 is none to go beyond."""
    if one["best"] is None or not (one["sweep"] and len(one["sweep"]) > 1):
        return []
    best = {RATE: one["best"], **one.get("tuned", {})}
    if study.get("search") == "sobol":
        at = {key: axis.quantile(value) for key, (axis, value) in ranged(best, arm, study).items()}
        return [f"{key} {best[key]:g}" for key, q in at.items() if not NEAR_END < q < 1 - NEAR_END]
    ranges = {RATE: [point["learning_rate"] for point in one["sweep"]], **study.get("tune", {})}
    return [f"{k} {v:g}" for k, v in best.items() if v and v in (min(ranges[k]), max(ranges[k]))]


def ranged(values, arm, study):
    """{key: (its range, the value in the range's terms)} of an arm's {key: value}, in a Sobol search."""
    rates = study["learning_rates"][arm]
    centre = math.exp(mean(map(math.log, rates)))
    axes = {key: Axis.of(key, words) for key, words in study["space"].items() if key in values}
    return {key: (axis, values[key] / (centre if key == RATE else 1)) for key, axis in axes.items()}


def luck(one, arm, study):
    """({k: median best of k points}, the lowest point of a quadratic or None) of what an arm's first rung found."""
    rows = one.get("search", one["sweep"])
    points = {}
    for row in rows:
        if row.get("budget", 1) == rows[0].get("budget", 1):
            point = tuple(row.get("point", [row["learning_rate"]]))
            points.setdefault(point, []).append(math.inf if row["loss"] is None else row["loss"])
    losses = [mean(values) for values in points.values()]
    if study.get("search") != "sobol" or len(points) < 2:
        return best_of_k(losses), None
    named = [dict(zip((RATE, *one["tuned"]), point, strict=True)) for point in points]
    places = [ranged(values, arm, study) for values in named] if one["tuned"] or RATE in study["space"] else []
    fit = quadratic_best([[axis.quantile(v) for axis, v in place.values()] for place in places], losses)
    if fit is None:
        return best_of_k(losses), None
    centre = math.exp(mean(map(math.log, study["learning_rates"][arm])))
    low = {
        k: axis.value(q) * (centre if k == RATE else 1)
        for (k, (axis, _)), q in zip(places[0].items(), fit[0], strict=True)
    }
    return best_of_k(losses), {"point": low, "loss": fit[1]}


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


# ---------------------------------------------------------------------------------------------------------------------
# report.md


def report(found, name):
    """The text of report.md: the verdict first, then each comparison, then every run that did not end well."""
    study = found["study"]
    lines = [f"# {name}", "", *[f"**{line}**\n" for line in found["verdicts"]], *about(found), ""]
    for comparison, arms in found["places"].items():
        heads = ["arm", "best learning rate", "floor", "mean loss", "deviation", "bad starts", "spikes"]
        heads += ["gap", "95 % interval", "p", "verdict", "speedup"]
        lines += [f"## {comparison}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [table_row(arm, one) for arm, one in arms.items()]
        lines += [""]
        if len(found["places"]) > 1:
            lines += [f"{sentence(a, study['baseline'], one['test'])}.\n" for a, one in arms.items() if "test" in one]
        lines += ["Learning rate (its floor): loss" + (", of the first rung" if study.get("space") else ""), ""]
        lines += [f"- {arm}: {'; '.join(map(shown_loss, one['sweep']))}" for arm, one in arms.items()]
        tuned = {arm: one for arm, one in arms.items() if one.get("tuned")}
        if tuned:
            lines += ["", "The whole search: learning rate and what follows it in the table: loss", ""]
            lines += [search_line(arm, one) for arm, one in tuned.items()]
        if any(len(one["best_of"]) > 1 for one in arms.values()):
            lines += ["", "The luck of each search: the best of k of its points, as their median over all draws", ""]
            lines += [luck_line(arm, one) for arm, one in arms.items() if len(one["best_of"]) > 1]
        lines += [""]
    lines += ["![loss against learning rate](learning_rates.png)", "", "![validation loss](curves.png)", ""]
    bad = [run for run in found["runs"] if run["status"] != "finished"]
    lines += ["## Runs that diverged or failed", ""]
    lines += [f"- {run['run']}: {run['status']}" for run in bad] or ["None."]
    arms = [f"{arm} (`{args.strip()}`)" if args.strip() else arm for arm, args in study["arms"].items()]
    lines += ["", f"Arms: {', '.join(arms)}. Runs made by commit {', '.join(found['commits']) or 'unknown'}."]
    lines += ["Every key is in study.json; out_dir/runs has each run, with the job.py that repeats it.", ""]
    return "\n".join(lines)


def about(found):
    """How the study was made and how to read its tables."""
    study = found["study"]
    seeds, first = study["seeds"], study.get("search_seed", study["seeds"][0])
    tokens = " or ".join(f"{n:,}" for n in found["tokens"])
    judged_by = "the same validation windows as the result"
    if study.get("test_loss"):
        judged_by = "the first half of the validation text, of which the result is the second"
    if study.get("search") == "sobol":
        search = (
            f"the best of {study['points']} quasi-random points, the same for all arms, halved over budgets and seeds"
        )
    else:
        keys = f", and with it {', '.join(study['tune'])}, one after the other," if study.get("tune") else ""
        search = f"the best of its own sweep{keys}; a grid whose best lies at an end {extended(study)}"
    fresh = f"The search began with seed {first}; none of its seeds is in the verdict."
    if first in seeds:
        fresh = f"The search was made with seed {first}, which counts in the verdict too and favours every arm there."
    yield (
        f"Final validation loss, in nats per token, of runs of {tokens} tokens. An arm's learning rate (that of Norm) "
        f"is {search}; judged by {judged_by}. {fresh} The floor is what the rate falls to."
    )
    yield ""
    yield (
        f"Gap: arm minus {study['baseline']}, paired by seed ({', '.join(map(str, seeds))}), so below zero the arm is "
        "better. p is of a paired t-test, by Holm's method over the arms. Lower or higher: p below 0.05; by more than "
        f"{study.get('margin', 0.01):g}: the same against a gap of that size; equivalent: the 90 % interval is inside; "
        f"undecided: anything may be true. Bad starts: seeds more than {BAD_START} above the arm's median."
    )
    yield ""
    yield (
        f"Spikes, one number a seed: how often the training loss stood more than {SPIKE_HEIGHT} nats, and more than "
        f"{SPIKE_DEVIATIONS} standard deviations, above the median of the {SPIKE_ROWS} logged steps before it; "
        "steps in a row are one spike."
    )


def listed(names, most=12):
    return ", ".join(names) if len(names) <= most else f"{len(names)} arms, as the tables show"


def search_line(arm, one):
    budgets = {row.get("budget", 1) for row in one["search"]}
    texts = []
    for row in one["search"]:
        remark = f" ({row['budget']:g} of the steps, seed {row['seed']})" if len(budgets) > 1 else ""
        texts.append(f"{' '.join(f'{n:g}' for n in row['point'])}{remark}: {shown(row['loss'])}")
    return f"- {arm}: {'; '.join(texts)}"


def luck_line(arm, one):
    text = "; ".join(f"{k}: {shown(loss) if math.isfinite(loss) else 'diverged'}" for k, loss in one["best_of"].items())
    if one["quadratic"]:
        point = ", ".join(f"{key} {value:.3g}" for key, value in one["quadratic"]["point"].items())
        text += f". The lowest point of a quadratic through them: {one['quadratic']['loss']:.4f} at {point}"
    return f"- {arm}: {text}"


def shown_loss(p):
    return f"{p['learning_rate']:g} ({p['floor']:g}): {p['status'] if p['loss'] is None else shown(p['loss'])}"


def table_row(arm, one):
    test, speed, tuned = one.get("test"), one.get("speedup"), one.get("tuned", {})
    at_end = f" (near an end: {', '.join(one['ends'])})" if one["ends"] else ""
    cells = [arm, "-" if one["best"] is None else shown_point((one["best"], *tuned.values()), tuned) + at_end]
    floor = next((p["floor"] for p in one["sweep"] if p["learning_rate"] == one["best"]), None)
    lost = sum(loss is None for loss in one["losses"].values())
    cells += ["-" if floor is None else f"{floor:g}", shown(one["mean"]) + (f" ({lost} diverged)" if lost else "")]
    spikes = one.get("spikes", {}).values()
    cells += [shown(one["deviation"]), f"{one['bad_starts']} of {len(one['losses'])}" if one["losses"] else "-"]
    cells += [", ".join("-" if n is None else str(n) for n in spikes)]
    if not test or test["gap"] is None:
        cells += ["", "", "", ""]
    else:
        known = test["low"] is not None
        cells += [shown(test["gap"], "+"), shown_interval(test) if known else "-", f"{test['p']:.2g}" if known else "-"]
        cells += [test["word"]]
    return f"| {' | '.join([*cells, shown_speedup(speed) if one['role'] == 'arm' else ''])} |"


def shown_interval(test):
    remark = "" if test["alpha"] == ALPHA else f" ({100 * (1 - test['alpha']):.3g} %)"
    return f"{test['low']:+.4f} to {test['high']:+.4f}{remark}"


def shown_speedup(speed):
    if speed is None:
        return "not measured"
    seeds = "one seed" if speed["low"] is None else f"{speed['low']:.2f} to {speed['high']:.2f}"
    return f"{speed['ratio']:.2f}x ({seeds}" + (f", {speed['unread']} unread)" if speed.get("unread") else ")")


def shown(number, sign=""):
    return "-" if number is None else f"{number:{sign}.4f}"


# ---------------------------------------------------------------------------------------------------------------------


def compact(value, indent=0):
    """JSON with a line for each run, curve and point: an object is broken up only where it holds others."""
    line = json.dumps(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(x, dict) or (isinstance(x, list) and x and isinstance(x[0], list)) for x in inner):
        return line
    pad, named = "\n" + " " * (indent + 1), isinstance(value, dict)
    items = [(f"{json.dumps(key)}: " if named else "") + compact(x, indent + 1) for key, x in pairs(value)]
    open_, close = "{}" if named else "[]"
    return open_ + pad + f",{pad}".join(items) + pad[:-1] + close


def pairs(value):
    return value.items() if isinstance(value, dict) else enumerate(value)


def save(found, folder):
    write_text(folder / "study.json", compact(found) + "\n")
    write_text(folder / "report.md", report(found, folder.name))


def write(study):
    """study.json and report.md; returns what study.json holds."""
    found = judged(facts(study))
    save(found, study.folder)
    return found


def again(folder):
    """study.json and report.md of a study that is done, with today's words; nothing is run."""
    folder = Path(folder)
    try:
        found = json.loads((folder / "study.json").read_text())
        study = found["study"]
        found.setdefault(
            "tokens",
            [math.prod(study[k] for k in ("max_iters", "gradient_accumulation_steps", "batch_size", "block_size"))],
        )
        for one in (one for arms in found["places"].values() for one in arms.values()):
            one.pop("at_an_end", None)
            one["curves"] = {s: [[step, five(loss)] for step, loss in curve] for s, curve in one["curves"].items()}
        save(judged(found), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}: expected the folder of a finished study ({type(error).__name__}: {error})"
        ) from None
