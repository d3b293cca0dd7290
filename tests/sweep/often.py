"""The command as a process that saves often, so that it can be killed.

``python often.py SEGMENT CHECKPOINT ...`` is ``scbjax ...``, with segments and checkpoints of so
many seconds; 0 for one at every record.
"""

import functools
import sys

if __name__ == "__main__":
    from scbjax.cli import main
    from scbjax.sweep.engine import execute
    from scbjax.sweep.engine.chunks import Executor
    from scbjax.sweep.engine.engines import LocalEngine

    segment, checkpoint, *arguments = sys.argv[1:]
    executor = functools.partial(Executor, segment_seconds=float(segment))
    run_study = functools.partial(execute.run_study, checkpoint_seconds=float(checkpoint))
    engine = functools.partial(LocalEngine, executor)
    vars(execute).update(LocalEngine=engine, run_study=run_study)
    sys.exit(main(arguments))
