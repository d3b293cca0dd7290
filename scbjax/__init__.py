"""Sparse contextual bigrams learned by linear transformers, in JAX.

The public names of the core can be imported from here. They are looked up on first use (PEP 562),
so `import scbjax` costs nothing and does not import JAX.

Example:
    >>> import scbjax
    >>> scbjax.random_task.__module__
    'scbjax.task'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scbjax import (
        algorithm as algorithm,
        assumptions as assumptions,
        composition as composition,
        losses as losses,
        model as model,
        models as models,
        observables as observables,
        optim as optim,
        paper as paper,
        parallel as parallel,
        parts as parts,
        plot as plot,
        recorded as recorded,
        sampling as sampling,
        saving as saving,
        settings as settings,
        sharding as sharding,
        simulation as simulation,
        sources as sources,
        stages as stages,
        starts as starts,
        sweep as sweep,
        task as task,
        theory as theory,
        training as training,
        trajectories as trajectories,
        transfer as transfer,
    )
    from scbjax.algorithm import Tracked as Tracked
    from scbjax.assumptions import (
        TaskReport as TaskReport,
        check_task as check_task,
        task_from_arrays as task_from_arrays,
    )
    from scbjax.composition import (
        Learner as Learner,
        LearnerState as LearnerState,
        learner as learner,
    )
    from scbjax.experiments.of_parts import learning as learning
    from scbjax.exploring.explorer import explore as explore
    from scbjax.fitting.fits import fit as fit
    from scbjax.fitting.fitted import Fit as Fit
    from scbjax.fitting.picture import draw_fit as draw_fit
    from scbjax.fitting.reading import read_symbols as read_symbols
    from scbjax.fitting.saving import load_fit as load_fit, save_fit as save_fit
    from scbjax.losses import (
        excess_loss as excess_loss,
        loss as loss,
        population_grad as population_grad,
        population_loss as population_loss,
    )
    from scbjax.model import (
        ATTENTION_MAPS as ATTENTION_MAPS,
        AttentionMap as AttentionMap,
        Params as Params,
        init_params as init_params,
        map_attention as map_attention,
        predict as predict,
    )
    from scbjax.models import linear_transformer as linear_transformer
    from scbjax.observables import View as View, observe as observe
    from scbjax.optim import (
        adam as adam,
        keep_invariants as keep_invariants,
        project_tangent as project_tangent,
        proximal_l1 as proximal_l1,
        raw_sgd as raw_sgd,
        restore_column_sums as restore_column_sums,
        scale_by_stationary as scale_by_stationary,
        scb_proximal as scb_proximal,
        scb_sgd as scb_sgd,
    )
    from scbjax.paper import Info as Info
    from scbjax.parallel import (
        map_trajectories as map_trajectories,
        use_all_cores as use_all_cores,
    )
    from scbjax.parts import (
        Model as Model,
        Observable as Observable,
        Source as Source,
        Stage as Stage,
        Track as Track,
    )
    from scbjax.plot import plot_dataset as plot_dataset
    from scbjax.recorded import OBSERVABLES as OBSERVABLES
    from scbjax.sampling import (
        Batch as Batch,
        check_batch as check_batch,
        sample_batch as sample_batch,
    )
    from scbjax.saving import load as load, save as save
    from scbjax.settings import Settings as Settings
    from scbjax.sharding import over_positions as over_positions
    from scbjax.simulation import Simulation as Simulation, simulate as simulate
    from scbjax.sources import (
        Text as Text,
        held_out_loss as held_out_loss,
        sample_windows as sample_windows,
        scb_source as scb_source,
        windows as windows,
    )
    from scbjax.stages import (
        population_refit as population_refit,
        refit_value as refit_value,
        round_attention as round_attention,
        threshold_and_project as threshold_and_project,
    )
    from scbjax.task import (
        Task as Task,
        mu_inner as mu_inner,
        pattern_signal as pattern_signal,
        pattern_sparsity as pattern_sparsity,
        random_task as random_task,
        related_task as related_task,
        stationary_distribution as stationary_distribution,
        stationary_norm as stationary_norm,
        transition_signal as transition_signal,
    )
    from scbjax.theory import (
        PathProjection as PathProjection,
        PopulationPath as PopulationPath,
        Rates as Rates,
        StepPrediction as StepPrediction,
        path_point as path_point,
        population_path as population_path,
        population_step as population_step,
        predict_step as predict_step,
        project_on_path as project_on_path,
    )
    from scbjax.training import train as train
    from scbjax.trajectories import Trajectory as Trajectory
    from scbjax.transfer import (
        first_step as first_step,
        keep_large as keep_large,
        mix_value as mix_value,
        source_overlap as source_overlap,
    )

__version__ = "0.1.0"

_EXPORTS = {
    "task": (
        "Task mu_inner pattern_signal pattern_sparsity random_task "
        "related_task stationary_distribution stationary_norm transition_signal"
    ),
    "assumptions": "TaskReport check_task task_from_arrays",
    "sampling": "Batch check_batch sample_batch",
    "sharding": "over_positions",
    "parallel": "map_trajectories use_all_cores",
    "model": "ATTENTION_MAPS AttentionMap Params init_params map_attention predict",
    "theory": (
        "PathProjection PopulationPath Rates StepPrediction path_point population_path "
        "population_step predict_step project_on_path"
    ),
    "losses": "excess_loss loss population_grad population_loss",
    "stages": "population_refit refit_value round_attention threshold_and_project",
    "recorded": "OBSERVABLES",
    "observables": "View observe",
    "settings": "Settings",
    "parts": "Model Observable Source Stage Track",
    "sources": "Text held_out_loss sample_windows scb_source windows",
    "models": "linear_transformer",
    "composition": "Learner LearnerState learner",
    "trajectories": "Trajectory",
    "paper": "Info",
    "algorithm": "Tracked",
    "starts": "",
    "training": "train",
    "saving": "load save",
    "transfer": "first_step keep_large mix_value source_overlap",
    "simulation": "Simulation simulate",
    "plot": "plot_dataset",
    "sweep": "",  # its own names are scbjax.sweep.run and scbjax.sweep.load
    "optim": (
        "adam keep_invariants project_tangent proximal_l1 raw_sgd restore_column_sums "
        "scale_by_stationary scb_proximal scb_sgd"
    ),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}
_MODULE_OF["learning"] = "experiments.of_parts"
_MODULE_OF |= {
    "Fit": "fitting.fitted",
    "draw_fit": "fitting.picture",
    "explore": "exploring.explorer",
    "fit": "fitting.fits",
    "load_fit": "fitting.saving",
    "read_symbols": "fitting.reading",
    "save_fit": "fitting.saving",
}

__all__ = ["__version__"]
__all__ += list(_EXPORTS)
__all__ += list(_MODULE_OF)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import the module that is `name`, or that defines it, when the name is first used."""
    if name in _EXPORTS:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too, for tab completion."""
    return sorted({*globals(), *__all__})
