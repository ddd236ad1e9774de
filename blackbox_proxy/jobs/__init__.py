"""Bulk runs: many prompts from a file, one JSON line each into another, which a killed run goes on with.

    run_job(tuner, "prompts.jsonl", "out.jsonl", concurrency=8, max_tokens=64)

inputs.py reads and checks rows, row.py answers one, outputs.py keeps the append-only file, run.py goes through all,
estimate.py says what they may cost.
"""

from blackbox_proxy.jobs.estimate import Estimate, estimate_job
from blackbox_proxy.jobs.run import JobReport, arun_job, run_job

__all__ = ["Estimate", "JobReport", "arun_job", "estimate_job", "run_job"]
