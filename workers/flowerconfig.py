"""How Flower is set up, everywhere: `millrace flower`, the embedded stack and docker-compose.yml pass this file to it.

Flower executes it and takes the names that are options of its own. They win over FLOWER_ variables of the environment,
which set whatever is not set here (FLOWER_URL_PREFIX, FLOWER_CERTFILE and FLOWER_KEYFILE, ...). Address, port and the
place of its memory come as arguments.
"""

from __future__ import annotations

from pipeline.settings import load_settings
from workers.reporting_service import ReportingService

_settings = load_settings().flower

# What it takes is in the ledger, with what all processes of ours take.
ReportingService("flower", load_settings().postgres).start()

# Never an argument, which every user of the machine could read; and a list, in which a comma is part of the password.
basic_auth = [_settings.auth.get_secret_value()]
read_only = _settings.read_only

# What it remembers outlives a restart, and is bounded: tasks, workers, and the workers that label its metrics.
persistent = True
state_save_interval = 60_000  # milliseconds
max_tasks = _settings.max_tasks
max_workers = 500
purge_offline_workers = _settings.purge_seconds

# The pages. The arguments of a task are the id of its batch. Times are exact, in UTC as in the logs and the ledger; the
# one under the mouse says how long ago that was (the other way round is not offered).
tasks_columns = "name,args,state,received,runtime,worker,uuid"
natural_time = False
auto_refresh = True
