"""What a study says: its plan before it runs; afterwards study.json and report.md, the verdict first."""

import json
import math
from dataclasses import asdict
from statistics import median

from blockwise import print0
from blockwise.curves import SPIKE_DEVIATIONS, SPIKE_HEIGHT, SPIKE_ROWS, speedups
from blockwise.files import write_text
from blockwise.study.plan import TWICE, floor_of, reported, shown_point, tokens_of
from blockwise.study.rules import paired_test, sentence, spread, verdict


def print_plan(study):
    config, runs = study.config, study.runs()
    for comparison in study.comparisons:
        print0(comparison)
        for arm in config.arms:
            grid = sorted(config.learning_rates[arm])
            start = study.start(comparison, arm)
            swept = [study.run_of(comparison, arm, (rate, *start), config.seeds[0]) for rate in grid]
            rates = ", ".join(f"{run.rate:g} (to {floor_of(run)})" for run in swept)
            print0(f"  {arm + ':':<20} learning rate (to its floor) {rates}")
    todo = sum(tokens_of(run.config) for run in study.todo()) + study.future_tokens()
    tokens = todo + sum(tokens_of(run.config) for run in runs if study.result(run))
    single = sorted({tokens_of(settings) for (_, arm), settings in study.settings.items() if not arm.endswith(TWICE)})
    for key, values in config.tune.items():
        print0(f"  {key + ':':<20} {', '.join(f'{value:g}' for value in values)}, tuned from the arm's own")
    twice = f"; {config.baseline} again with twice the steps" if config.twice else ""
    sizes = " or ".join(f"{n:,}" for n in single)
    print0(f"a run: {sizes} tokens; {len(config.seeds)} seeds at each arm's best{twice}")
    print0(f"at least {tokens:,} tokens in all; a grid whose best lies at an end {extended(config)}")
    timed = [(tokens_of(run.config), study.result(run)["seconds"]) for run in runs if study.result(run)]
    speeds = [tokens / seconds for tokens, seconds in timed if seconds]
    if speeds:
        hours = todo / median(speeds) / 3600
        print0(f"{len(timed)} runs are done; the rest: {hours:.1f} h, divided by the number of runs side by side")
    else:
        print0("time: known once the first run is done (--max_iters=50 --out_dir=out/try gives a quick idea)")


def extended(config):
    return f"is extended, by up to {config.extensions} rates" if config.extensions else "is left as it is"


def summary(study):
    """All of study.json: for each comparison and arm the sweep, the best learning rate, the seeds, the test."""
    config = study.config
    comparisons = {comparison: summary_of(study, comparison) for comparison in study.comparisons}
    others = [arm for arm in config.arms if arm != config.baseline]
    tests = {arm: [arms[arm]["test"] for arms in comparisons.values()] for arm in others}
    verdicts = [verdict(arm, config.baseline, tests[arm]) for arm in others]
    if len(config.seeds) == 1:
        verdicts = [f"One seed ran, so there is no verdict; gaps to {config.baseline} are in the tables."]
    ends = [f"{arm} ({name})" for name, arms in comparisons.items() for arm, one in arms.items() if one["at_an_end"]]
    if ends:
        text = "The best learning rate lies at an end of its grid, so it may be undertuned"
        verdicts.append(f"{text}: {listed(ends)}.")
    single = [arm for arm in config.arms if all(len(arms[arm]["sweep"]) == 1 for arms in comparisons.values())]
    if single:
        verdicts.append(f"Not tuned, run at one learning rate only: {listed(single)}.")
    results = {run: study.result(run) or {"status": "not run"} for run in study.runs()}
    return {
        "verdicts": verdicts,
        "places": comparisons,  # the key's name in the files of earlier studies
        "runs": [
            {"run": run.label, "folder": str(run.folder), "floor": run.config.resolved().min_lr}
            | {key: result.get(key) for key in ("status", "loss", "test", "seconds", "spikes")}
            for run, result in results.items()
        ],
        "study": asdict(config),
        "commits": sorted({commit for run in results if (commit := commit_of(run))}),
    }


def summary_of(study, comparison):
    """{arm: what is known of it in this comparison}"""
    config, arms, losses = study.config, {}, {}
    for arm in [a for c, a in study.settings if c == comparison]:
        runs, known, best = study.arm(comparison, arm)
        at_best = [run for run in runs if run.point == best]
        first = [run for run in runs if run.seed == config.seeds[0]]
        swept = sorted((run for run in first if best is None or run.values == best[1:]), key=lambda run: run.rate)
        complete = best is not None and all((run.point, run.seed) in known for run in at_best)
        losses[arm] = {run.seed: reported(study.result(run)) for run in at_best} if complete else None
        mean, deviation = spread(losses[arm] or {})
        arms[arm] = {
            "role": "baseline" if arm == config.baseline else "twice" if arm.endswith(TWICE) else "arm",
            "sweep": [sweep_point(run, study.result(run)) for run in swept],
            "best": best and best[0],
            "tuned": dict(zip(study.tuned_keys(arm), best[1:], strict=True)) if best else {},
            "search": [{"point": list(run.point)} | sweep_point(run, study.result(run)) for run in first],
            "at_an_end": best is not None and best[0] in (swept[0].rate, swept[-1].rate) and len(swept) > 1,
            "losses": {seed: loss if math.isfinite(loss) else None for seed, loss in (losses[arm] or {}).items()},
            "mean": mean, "deviation": deviation,
            "spikes": {run.seed: study.result(run)["spikes"] for run in at_best if (run.point, run.seed) in known},
            "curves": {
                run.seed: study.result(run)["curve"]
                for run in at_best
                if math.isfinite(known.get((run.point, run.seed), math.inf))
            },
        }  # fmt: skip
    twice = arms.get(config.baseline + TWICE, {"curves": {}})["curves"]
    for arm in config.arms:
        if arm != config.baseline:
            both = losses[arm] and losses[config.baseline]
            arms[arm]["test"] = paired_test(losses[arm], losses[config.baseline]) if both else None
            arms[arm]["speedup"] = speedups(arms[arm]["curves"], twice)
    return arms


def sweep_point(run, result):
    result = result or {"status": "not run", "loss": None, "spikes": None}
    floor = run.config.resolved().min_lr
    return {"learning_rate": run.rate, "floor": floor} | {key: result[key] for key in ("status", "loss", "spikes")}


def commit_of(run):
    """The project's commit with which a run was made, by its config.json."""
    try:
        return json.loads((run.folder / "config.json").read_text())["commit"]
    except (OSError, ValueError, KeyError):
        return None


def report(study, found):
    """The text of report.md: the verdict first, then each comparison, then every run that did not end well."""
    config = study.config
    tokens = sorted({tokens_of(study.settings[comparison, config.baseline]) for comparison in study.comparisons})
    lines = [f"# {study.folder.name}", "", *[f"**{line}**\n" for line in found["verdicts"]]]
    lines += [
        f"Final validation loss, in nats per token, of runs of {' or '.join(f'{n:,}' for n in tokens)} tokens. "
        f"An arm's learning rate (that of Norm){and_keys(config)} is the best of its own sweep, made with seed "
        f"{config.seeds[0]} and judged by {judged_by(config)}; a grid whose best lies at an end {extended(config)}. "
        f"The floor is what the rate falls to. Gap: arm minus {config.baseline}, so below zero the arm is better; "
        f"mean, interval and p are of the paired differences over seeds {', '.join(map(str, config.seeds))}. "
        "With several comparisons, one in twenty intervals misses by chance.",
        "",
        f"Spikes, one number a seed: how often the training loss stood more than {SPIKE_HEIGHT} nats, and more than "
        f"{SPIKE_DEVIATIONS} standard deviations, above the median of the {SPIKE_ROWS} logged steps before it; "
        "steps in a row are one spike.",
        "",
    ]
    for comparison, arms in found["places"].items():
        heads = ["arm", "best learning rate", "floor", "mean loss", "deviation", "spikes"]
        heads += ["gap", "95 % interval", "p", "speedup"]
        lines += [f"## {comparison}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [table_row(arm, one) for arm, one in arms.items()]
        lines += [""]
        if len(config.seeds) > 1:
            lines += [f"{sentence(a, config.baseline, one['test'])}.\n" for a, one in arms.items() if "test" in one]
        lines += [f"Learning rate (its floor): loss, with seed {config.seeds[0]}", ""]
        lines += [f"- {arm}: {'; '.join(map(point, one['sweep']))}" for arm, one in arms.items()]
        lines += [""]
        if config.tune:
            lines += [f"The whole search: learning rate, {', '.join(config.tune)}: loss", ""]
            lines += [search_line(arm, one) for arm, one in arms.items() if one["tuned"]]
            lines += [""]
    lines += ["![loss against learning rate](learning_rates.png)", "", "![validation loss](curves.png)", ""]
    bad = [run for run in found["runs"] if run["status"] != "finished"]
    lines += ["## Runs that diverged or failed", ""]
    lines += [f"- {run['run']}: {run['status']}" for run in bad] or ["None."]
    arms = [f"{arm} (`{args.strip()}`)" if args.strip() else arm for arm, args in config.arms.items()]
    lines += ["", f"Arms: {', '.join(arms)}. Runs made by commit {', '.join(found['commits']) or 'unknown'}."]
    lines += ["Every key is in study.json; out_dir/runs has each run, with the job.py that repeats it.", ""]
    return "\n".join(lines)


def listed(names, most=12):
    return ", ".join(names) if len(names) <= most else f"{len(names)} arms, as the tables show"


def and_keys(config):
    return f", and with it {', '.join(config.tune)}, one after the other," if config.tune else ""


def judged_by(config):
    if config.test_loss:
        return "the first half of the validation text, of which the result is the second"
    return "the same validation windows as the result"


def search_line(arm, one):
    found = [f"{' '.join(f'{n:g}' for n in p['point'])}: {shown(p['loss'])}" for p in one["search"]]
    return f"- {arm}: {'; '.join(found)}"


def point(p):
    return f"{p['learning_rate']:g} ({p['floor']:g}): {p['status'] if p['loss'] is None else shown(p['loss'])}"


def table_row(arm, one):
    test, speed = one.get("test"), one.get("speedup")
    end = " (at an end)" if one["at_an_end"] else ""
    best = (one["best"], *one["tuned"].values())
    cells = [arm, "-" if one["best"] is None else shown_point(best, one["tuned"], end)]
    floor = next((p["floor"] for p in one["sweep"] if p["learning_rate"] == one["best"]), None)
    lost = sum(loss is None for loss in one["losses"].values())
    cells += ["-" if floor is None else f"{floor:g}", shown(one["mean"]) + (f" ({lost} diverged)" if lost else "")]
    cells += [shown(one["deviation"]), ", ".join("-" if n is None else str(n) for n in one["spikes"].values())]
    if test is None:
        cells += ["", "", ""]
    else:
        interval = "-" if test["low"] is None else f"{test['low']:+.4f} to {test['high']:+.4f}"
        cells += [shown(test["gap"], "+"), interval, "-" if test["p"] is None else f"{test['p']:.2g}"]
    return f"| {' | '.join([*cells, shown_speedup(speed) if one['role'] == 'arm' else ''])} |"


def shown_speedup(speed):
    if speed is None:
        return "not measured"
    seeds = "none of single seeds" if speed["low"] is None else f"{speed['low']:.2f} to {speed['high']:.2f}"
    return f"{speed['ratio']:.2f}x ({seeds}" + (f", {speed['unread']} unread)" if speed["unread"] else ")")


def shown(number, sign=""):
    return "-" if number is None else f"{number:{sign}.4f}"


def write(study):
    """study.json and report.md; returns the summary."""
    found = summary(study)
    write_text(study.folder / "study.json", json.dumps(found, indent=1))
    write_text(study.folder / "report.md", report(study, found))
    return found
