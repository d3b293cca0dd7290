"""An explorer of a study's snapshots: one HTML file in which A and V are watched as they learn.

:func:`scbjax.exploring.explorer.explore` is ``scbjax explore`` as a function. In the order in which
the others are used: `opening` finds what is there of a study, `choosing` says which matrices and
curves are shown, `thinning` how much of them fits into the file, `gathering` reads that into
arrays, and `page` writes them into a page. The page is built with Bokeh, which is imported when a
page is made; nothing here needs JAX.
"""

from typing import Final

BUDGET: Final = "20MB"
"""Size of a page: what a browser opens at once, and a mail takes."""
