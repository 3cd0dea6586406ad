"""A script that does as it is told by its first argument; every rank makes some steps first."""

import os
import signal
import sys
import time

mood, rank = sys.argv[1], int(os.environ["RANK"])

if mood == "exit":  # rank 1 ends, rank 0 waits for it in a collective
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    if rank == 1:
        print("no more data here", file=sys.stderr)
        sys.exit(3)
    dist.all_reduce(torch.ones(1))
elif mood == "hang":
    import torch.distributed as dist

    dist.init_process_group("gloo")
    print(f"rank {rank} begins", flush=True)
    if rank == 1:
        time.sleep(3600)
    dist.barrier()
elif mood == "stop":  # has a child of its own, in a session of its own, and does not hear SIGTERM
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: print("not yet", flush=True))
    print(f"child {child.pid}", flush=True)
    while True:
        time.sleep(0.1)
elif mood == "restart":  # ends by itself once it was started again
    output = os.environ["CHAINRULE_OUTPUT"]
    print(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", flush=True)
    while os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(0.1)
    with open(os.path.join(output, f"rank-{rank}.txt"), "w") as stream:
        stream.write("done")
elif mood == "mlflow":
    import mlflow

    if rank == 0:
        with mlflow.start_run():
            mlflow.log_metric("my_own", 42.0)
elif mood == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
