r"""Sequences of one's own: mixtures of transitions over lags, fitted to a text, a column, a genome.

A mixture transition distribution (MTD; Raftery 1985) tells the next symbol from each of a few
earlier ones by a transition matrix, and mixes what they say. With *lags* counted back from the
symbol that is told (lag 1 is the symbol just before it), and columns of every P that sum to one,

    MTD    P(y | past) = sum_g w_g P[y, x_{-g}]              one matrix;
    MTDg   P(y | past) = sum_g w_g P_g[y, x_{-g}]            a matrix for each lag;
    SCB    P(y | past) = sum_g A[g, x_{-1}] P[y, x_{-g}]     one matrix, weights by the query.

The last is the sparse contextual bigram of this library, whose query is the symbol at lag 1, and is
itself among the positions. With H heads, MTD and SCB are sums of H such terms; all weights of a
query sum to one.

* `reading`: a file to symbols; `series`: symbols to windows that are counted;
* `mixtures`: the models, their likelihood and scores; `em`: their fit; `baselines`: n-grams;
* `moments`: the estimators by squared error, from counts of pairs alone; `descent`: by the learner
  of this library; `selection`: which lags;
* `bootstrap`: how sure weights and lags are, by resampled blocks;
* `fits`: all of that in one call, `scbjax.fit`; `fitted`: what it gives; `saving`: the same as a
  file; `picture`: as a figure.
"""
