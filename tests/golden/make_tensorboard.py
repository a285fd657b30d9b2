#!/usr/bin/env python3
"""Prints the hex bytes that src/train/reporting_test.cpp expects of a TensorBoard event file. Needs: pip install tensorboard."""
import io
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

out = io.BytesIO()
writer = RecordWriter(out)
writer.write(Event(wall_time=1.5, file_version="brain.Event:2").SerializeToString(deterministic=True))
values = [Summary.Value(tag="train/loss", simple_value=1.25), Summary.Value(tag="train/lr", simple_value=0.0)]
writer.write(Event(wall_time=2.5, step=300, summary=Summary(value=values)).SerializeToString(deterministic=True))
print(out.getvalue().hex())
