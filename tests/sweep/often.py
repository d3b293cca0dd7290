"""The command as a process that saves often, so that it can be killed.

``python often.py SEGMENT CHECKPOINT ...`` is ``scbjax ...``, with segments and checkpoints of so
many seconds; 0 for one at every record.
"""

import functools
import sys


def save_often(segment_seconds: float, checkpoint_seconds: float) -> None:
    """Makes every run of this process have segments and checkpoints of so many seconds.

    What is replaced is what `scbjax run` takes; tests fail where it takes something else.
    """
    from scbjax.sweep.engine import execute, here
    from scbjax.sweep.engine.chunks import Executor

    shortly = functools.partial(Executor, segment_seconds=segment_seconds)
    often = functools.partial(execute.run_study, checkpoint_seconds=checkpoint_seconds)
    vars(here).update(Executor=shortly)
    vars(execute).update(run_study=often)


def main() -> int:
    """Runs the command that stands after the two numbers."""
    segment, checkpoint, *arguments = sys.argv[1:]
    from scbjax import cli

    save_often(float(segment), float(checkpoint))
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
