"""What the MPI tests ask the system: the processes of a job, and what stands in /dev/shm."""
import os, pathlib


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


def segments():
    """Names in /dev/shm; every process with an OpenMP runtime, of whatever program, has one of those that are left out."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("__KMP_")}
