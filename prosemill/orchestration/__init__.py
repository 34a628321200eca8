"""The pipeline's run as a whole: what the flows in `flows/` are made of, and the servers around them.

    with at_work("wait") as lock, experiment(["model=tiny"]):
        result = reproduce("train", print, hold=[lock])   # "ran", "cached" or "unchanged"

- `stages.py` runs a stage by `dvc repro`, says what came of it and stops it in time.
- `experiment.py` gives params.yaml an experiment's values for as long as it runs.
- `runs.py` lets one run at a time work here, and tells the servers of runs that a crash left open.
- `page.py` is what a run's page shows; `environment.py` is how Prefect is set up here; `house.py` starts all servers.
"""
