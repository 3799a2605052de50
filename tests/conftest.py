"""What every test finds: the fixtures live in the fix_*.py beside this file, one subject each."""

import signal

import hypothesis

pytest_plugins = (
    "pytester",
    "fix_asgi",
    "fix_loops",
    "fix_flat",
    "fix_heap",
    "fix_examples",
    "fix_pgbouncer",
    "fix_portal",
    "fix_postgres",
    "fix_replication",
    "fix_leaks",
    "fix_servers",
    "fix_sockets",
    "fix_system_postgres",
    "fix_cluster",
)

# Time limits on examples say more about the machine than about the code.
hypothesis.settings.register_profile(
    "greenletio", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("greenletio")

# A shell makes what it starts in the background deaf to Ctrl-C, and so what that starts in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
