"""The phases of bench/gpu_accept.py, one file each; report.py has the checks, runs.py runs train.py and its like."""
