"""How often an attack is right, and how sure we are: NumPy and SciPy, on the host.

This module alone joins scores with true attributes and origins. Three questions, each with a chance
level of its own:

* attribution: is the guess for slot s the attribute of participant s? Chance is the share of the
  commonest value; any uniform permutation, even of whole updates, brings it to
  `permuted_attribution`.
* cohort: how many have which value (`histogram_of_units`)? No permutation changes what can be told.
  Chance is what a guess without evidence gets on the same cohorts (`subcohorts`).
* unit level: is the attribute of the *owner of a unit instance* guessed right from that unit
  alone? No permutation changes it; chance is the share of the commonest value.

An accuracy is NaN where nothing is active, the AUC also where all have one attribute value.

`tracks` judges pseudonyms over rounds, `anonymity` what a posterior over owners leaves open.
"""

from mixjax.evaluation.accuracies import attribution as attribution
from mixjax.evaluation.accuracies import attribution_over_draws as attribution_over_draws
from mixjax.evaluation.accuracies import balanced_accuracy as balanced_accuracy
from mixjax.evaluation.accuracies import chance as chance
from mixjax.evaluation.accuracies import guesses as guesses
from mixjax.evaluation.accuracies import permuted_attribution as permuted_attribution
from mixjax.evaluation.accuracies import unit_level as unit_level
from mixjax.evaluation.anonymity import effective_set_size as effective_set_size
from mixjax.evaluation.anonymity import entropy as entropy
from mixjax.evaluation.anonymity import fano_bound as fano_bound
from mixjax.evaluation.anonymity import guessing_entropy as guessing_entropy
from mixjax.evaluation.assemblies import exact_assemblies as exact_assemblies
from mixjax.evaluation.assemblies import joined_share as joined_share
from mixjax.evaluation.assemblies import owners as owners
from mixjax.evaluation.cohorts import histogram as histogram
from mixjax.evaluation.cohorts import histogram_of_units as histogram_of_units
from mixjax.evaluation.cohorts import overlap as overlap
from mixjax.evaluation.cohorts import subcohorts as subcohorts
from mixjax.evaluation.intervals import Interval as Interval
from mixjax.evaluation.intervals import student as student
from mixjax.evaluation.intervals import wilson as wilson
from mixjax.evaluation.linkage import neighbours as neighbours
from mixjax.evaluation.linkage import relink_rank as relink_rank
from mixjax.evaluation.linkage import unit_distances as unit_distances
from mixjax.evaluation.paired import Verdict as Verdict
from mixjax.evaluation.paired import equivalence as equivalence
from mixjax.evaluation.paired import superiority as superiority
from mixjax.evaluation.ranking import auc as auc
from mixjax.evaluation.ranking import membership_auc as membership_auc
from mixjax.evaluation.ranking import true_positive_rate as true_positive_rate
from mixjax.evaluation.tracks import adjusted_rand_index as adjusted_rand_index
from mixjax.evaluation.tracks import chance_purity as chance_purity
from mixjax.evaluation.tracks import purity as purity

__all__ = [
    "Interval",
    "Verdict",
    "adjusted_rand_index",
    "attribution",
    "attribution_over_draws",
    "auc",
    "balanced_accuracy",
    "chance",
    "chance_purity",
    "effective_set_size",
    "entropy",
    "equivalence",
    "exact_assemblies",
    "fano_bound",
    "guesses",
    "guessing_entropy",
    "histogram",
    "histogram_of_units",
    "joined_share",
    "membership_auc",
    "neighbours",
    "overlap",
    "owners",
    "permuted_attribution",
    "purity",
    "relink_rank",
    "student",
    "subcohorts",
    "superiority",
    "true_positive_rate",
    "unit_distances",
    "unit_level",
    "wilson",
]
