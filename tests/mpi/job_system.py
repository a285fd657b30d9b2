"""What the MPI tests ask the system: the processes of a job, and what stands in /dev/shm."""
import os, pathlib, time


def descendants(pid):
    """All living descendants of a process of ours."""
    found, parents = [], {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except (OSError, IndexError):
                continue
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(entry.name))
    todo = [pid]
    while todo:
        more = parents.get(todo.pop(), [])
        found += more
        todo += more
    return found


class LauncherWatch:
    """Kills a launcher whose job has ended: Open MPI 4.1's, having named the rank that ended the job, may wait for itself in PMIx_server_finalize for ever
    (once in 90 aborts on a busy machine). Its status is then -9."""

    PATIENCE_S = 10

    def __init__(self, process):
        self.process, self.has_run, self.ended = process, False, None

    def look(self, living):
        self.has_run = self.has_run or bool(living)
        self.ended = None if living or not self.has_run else self.ended or time.monotonic()
        if self.ended is not None and time.monotonic() - self.ended > self.PATIENCE_S and self.process.poll() is None:
            print(f"all processes have ended for {self.PATIENCE_S} s but the launcher {self.process.args[0]}, which is killed")
            self.process.kill()
            self.process.wait()


def segments():
    """Names in /dev/shm; every process with an OpenMP runtime, of whatever program, has one of those that are left out."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("__KMP_")}
