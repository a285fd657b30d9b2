#!/usr/bin/env python3
"""Proves, with ranks as processes under each MPI launcher that is installed (skipped, with status 77, when there is none): its variables are understood; the suite
of every transport passes on 1 to 4 ranks; a rank that is killed, stopped, slow, or names another size is named by the survivors'
report within the deadline, also where a survivor is inside an MPI call that does not come back; and nothing is left: no process of the job, no segment in /dev/shm."""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from job_system import LauncherWatch, descendants, segments

suite, build = sys.argv[1], sys.argv[2]
LAUNCHERS = {"openmpi": (["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n"], "mpicc.openmpi"),
             "mpich": (["mpiexec.mpich", "-n"], "mpicc.mpich")}
DEADLINE_S = 2.0
environment = dict(os.environ, ORRERY_MPI_PLUGIN_DIR=build)


def launch(library, ranks, mode, flight=""):
    command = LAUNCHERS[library][0] + [str(ranks), suite, library, mode] + ([flight] if flight else [])
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        ours, watch = set(), LauncherWatch(process)
        while process.poll() is None and time.monotonic() - began < 60:
            living = descendants(process.pid)
            watch.look(living)
            ours.update(living)
            time.sleep(0.02)
        timed_out = process.poll() is None
        if timed_out:
            process.kill()
        process.wait()
        wall = time.monotonic() - began
        left = []
        for _ in range(100):  # init needs a moment to reap what was killed
            left = [pid for pid in ours if os.path.exists(f"/proc/{pid}") and not pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].startswith(" Z")]
            if not left:
                break
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        out.seek(0), err.seek(0)
        text, log = out.read().decode(), err.read().decode()
    where = f"{library} {ranks} ranks {mode}"
    assert not timed_out, f"{where}: hangs\n{text}{log}"
    assert not left, f"{where}: processes left: {left}"
    return process.returncode, text, log, wall


def check(condition, where, log):
    assert condition, f"{where}\n{log}"


num_libraries = 0
for library, (launcher, compiler) in LAUNCHERS.items():
    if not shutil.which(launcher[0]) or not shutil.which(compiler):
        print(f"skipped: {library} is not installed")
        continue
    num_libraries += 1
    before = segments()
    for ranks in (1, 2, 3, 4):
        status, text, log, wall = launch(library, ranks, "suite")
        check(status == 0 and f"ok {ranks} ranks" in text, f"{library} suite on {ranks} ranks: status {status}", text + log)
        print(f"{library}: suite on {ranks} ranks in {wall:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        for mode, words in {"none": [],
                            "kill": ["rank 1 is lost", "dead"],
                            "stop": ["rank 1 is lost", "stopped"],
                            "slow": ["rank 1 is late", "computes B1 of step 3"],
                            "size": ["rank 1", "8000 bytes", "16000 bytes"],
                            "leave": ["does not come back", "rank 1 is lost", "stopped", "in END leave"]}.items():
            status, text, log, wall = launch(library, 4, mode, f"{folder}/flight")
            where = f"{library} {mode}: status {status} in {wall:.1f} s"
            if mode == "none":
                check(status == 0 and not os.listdir(folder), where, text + log)
            else:
                check(status != 0, where, log)
                if mode == "kill" and "rank 1 is lost" not in log:
                    # The launcher may kill the survivors before they can speak (Hydra always does); what they left says who was missing.
                    log = subprocess.run([suite, "report", f"{folder}/flight"], capture_output=True, text=True).stdout
                    words, where = ["computes B1 of step 3"], where + ", post mortem"
                    # Survivors may have been killed before they came as far as the others.
                    check(re.match(r"ranks? (\d, )*1(, \d)* (is|are) late", log), f"{where}: rank 1 is not among the late", log)
                for word in words + ([] if mode == "leave" else ["step 3", "AG3"]):
                    check(word in log, f"{where}: the report does not say '{word}'", log)
                check(wall < DEADLINE_S + 60, where, log)  # it ends by itself; on a busy machine the launcher alone takes seconds
            print(where)
    leaked = segments() - before
    check(not leaked, f"{library}: segments left: {sorted(leaked)}", "")
sys.exit(0 if num_libraries else 77)
