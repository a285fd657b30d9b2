#!/usr/bin/env python3
"""Proves how a run looks in a terminal: run in pseudo-terminals of several widths, no line is ever wider than the terminal, the live
line updates in place, colours obey NO_COLOR and TERM=dumb; in a pipe there is one plain line per report and no escape code."""
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

DEMO = sys.argv[1]
try:
    for descriptor in pty.openpty():
        os.close(descriptor)
except OSError as error:  # a bare chroot has no /dev/pts
    print(f"skipped: no pseudo-terminal here ({error})")
    sys.exit(77)
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def in_terminal(width, **variables):
    """What the program writes to a terminal of `width` columns (output only: stdin is not used)."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **variables}
    environment = {name: value for name, value in environment.items() if value is not None}
    process = subprocess.Popen([DEMO], stdin=subprocess.DEVNULL, stdout=child, stderr=child, env=environment)
    os.close(child)
    output = b""
    try:
        while chunk := os.read(main, 65536):
            output += chunk
    except OSError:  # the other side is closed
        pass
    os.close(main)
    assert process.wait() == 0
    return output.decode()


def screen_lines(output):
    """What is left on the screen: a carriage return and "erase line" start the row again."""
    rows = []
    for row in output.split("\n"):
        shown = ""
        for part in row.rstrip("\r").split("\r"):
            shown = ESCAPE.sub("", part) if part.startswith("\x1b[K") else ESCAPE.sub("", part) + shown[len(ESCAPE.sub("", part)):]
        rows.append(shown)
    return rows


for width in (20, 40, 80, 200):
    output = in_terminal(width, NO_COLOR=None)
    for piece in re.split(r"[\r\n]+", output):
        assert len(ESCAPE.sub("", piece)) < width, (width, piece)
    assert "\x1b[32m" in output or width == 20, "colours on a terminal"
    rows = screen_lines(output)
    assert "checkpoint 4 saved" in rows, rows
    if width >= 40:
        assert any(row.startswith("step  6/12") and "val 4.000" in row for row in rows), rows
        assert any(row.startswith("step 12/12") for row in rows), rows
        assert not any(row.startswith("step  5/12") for row in rows), "the live line is replaced"

for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb", "NO_COLOR": None}):
    assert not re.search(r"\x1b\[[0-9;]*m", in_terminal(80, **variables)), variables
assert all(ord(c) < 128 for c in in_terminal(80, LC_ALL="C")), "plain ASCII outside UTF-8"

pipe = subprocess.run([DEMO], capture_output=True, text=True, check=True)
lines = pipe.stderr.splitlines()
assert pipe.stdout == "" and "\x1b" not in pipe.stderr and "\r" not in pipe.stderr
assert [line for line in lines if line.startswith("step ")][0].startswith("step  1/12  loss 6.673"), lines
assert sum(bool(re.match(r"step +\d+/12", line)) for line in lines) == 12, lines

stream = subprocess.run([DEMO, "--json"], capture_output=True, text=True, check=True)
steps = [json.loads(line)["step"] for line in stream.stdout.splitlines()]
assert steps == list(range(1, 13)), steps

# A reader that goes away (head -1) does not end the run with an error when it ignores the signal, as training does.
gone = subprocess.run(["bash", "-c", 'trap "" PIPE; "$0" --json | head -1 >/dev/null; exit ${PIPESTATUS[0]}', DEMO], stderr=subprocess.DEVNULL)
assert gone.returncode == 0, gone.returncode
print("ok")
