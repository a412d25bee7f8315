"""The public surface is a list, and importing it stays light."""

import importlib
import subprocess
import sys

import pytest

import mixjax as mx

PUBLIC = [
    "BrokenUpdateError",
    "InputError",
    "accounting",
    "aggregation",
    "attacks",
    "checkpoint",
    "client",
    "cohort",
    "data",
    "datasets",
    "defences",
    "evaluation",
    "faults",
    "federation",
    "measures",
    "mix",
    "mixing",
    "models",
    "observation",
    "ops",
    "participation",
    "records",
    "rescaling",
    "rounds",
    "sharding",
    "types",
    "units",
]

DEFINED = {
    "accounting": "gaussian_delta gaussian_epsilon gaussian_noise_multiplier "
    "joint_noise_multiplier noise_multiplier shuffled_delta shuffled_epsilon",
    "aggregation": "Aggregation Reduce as_aggregation coordinate_median krum mean noisy_mean "
    "relative_weights scale trimmed_mean",
    "attacks": "",
    "attacks.base": "Attack Init Measure Observe Prepare Probe Send check",
    "attacks.channels": "Graph Hidden Norm Role asymmetry check_graph of_pairs rescaled trace",
    "attacks.couplings": "Couplings equations laws lengths measure shared",
    "attacks.crafted": "Isolated Tagged isolate regauge tag",
    "attacks.flooding": "dummies expected_dummies isolated",
    "attacks.learned": "attack check_attribute directions observe scores unit_scores",
    "attacks.lira": "confidence scores",
    "attacks.membership": "scores unit_scores",
    "attacks.shadows": "Pool References assemble attack features halves",
    "attacks.sim": "Statistics Terms active circumcenter cosine direction_squared_norms directions "
    "measure mix_statistics observe passive scores statistics unit_cosine",
    "attacks.source": "record_losses",
    "attacks.tracks": "Followed Tracks attack directions follow repair start",
    "attacks.unmix": "Assembly assemble attack",
    "checkpoint": "check_config conditions exclusive latest restore run run_segments",
    "client": "LocalResult LocalTraining LossFn check_result couples_examples local_training "
    "per_example_losses streamed",
    "cohort": "client_key default_chunk_size fold run zero_unless",
    "data": "Attribute ClientData Dataset Examples dirichlet iid pad pool preference_groups "
    "stack take unstack",
    "datasets": "",
    "datasets.cifar10": "cifar10",
    "datasets.fashion_mnist": "fashion_mnist",
    "datasets.lfw": "Face lfw read_attributes",
    "datasets.mobiact": "Person Trial find_trials mobiact read_people read_recording with_all",
    "datasets.motionsense": "Person Trial find_trials motionsense read_people read_recording",
    "datasets.verb_agg": "Person read_people verb_agg",
    "datasets.vowels": "vowels",
    "datasets.watch": "watch",
    "defences": "Defence Perturb clipped compose mixnn noisy_gradient none "
    "secure_aggregation shuffle top_k",
    "evaluation": "",
    "evaluation.accuracies": "attribution attribution_over_draws balanced_accuracy chance guesses "
    "permuted_attribution unit_level",
    "evaluation.anonymity": "effective_set_size entropy fano_bound guessing_entropy",
    "evaluation.assemblies": "exact_assemblies joined_share owners",
    "evaluation.cohorts": "histogram histogram_of_units overlap subcohorts",
    "evaluation.intervals": "Interval of_runs student wilson",
    "evaluation.linkage": "neighbours relink_rank unit_distances",
    "evaluation.paired": "Verdict equivalence superiority",
    "evaluation.ranking": "auc membership_auc true_positive_rate",
    "evaluation.tracks": "adjusted_rand_index chance_purity purity",
    "faults": "BrokenUpdateError Remaining is_sound leave_out",
    "federation": "Federation Init Step fedavg run",
    "measures": "mix of sketch",
    "mixing": "Draw Mix apply apply_in_place as_mix compose full_round keep mix next_draw proxy "
    "shuffle within",
    "models": "GroupNorm ImageCNN MLP SensorCNN cross_entropy initial",
    "observation": "Observation",
    "ops": "avg_pool conv_general_dilated group_norm max_pool",
    "participation": "Participation compose deadline dropout everyone fraction log_normal poisson "
    "schedule uniform",
    "records": "FederationState Memories Record Truth replay",
    "rescaling": "at_random to_received",
    "rounds": "AttackKeys ClientKeys RoundKeys Trained aggregate all_finite attack_keys choose "
    "choose_tree client_keys first_memories forward observe only_sum prepare round_keys "
    "seed_of_model take_step train weigh zero_rows",
    "sharding": "clients_mesh use_host_devices",
    "types": "floating threefry times wide widest",
    "units": "Chunks Units chunks describe dots parameter_counts partition squared_norms",
}

PASSED_ON = {
    "checkpoint": ["replacing", "stop_on_signals"],
    "data": ["prefetched"],
    "federation": ["Parts", "play_round"],
    "mixing": ["stream"],
    "units": ["Labels"],
}
"""What a module makes public that a private one defines."""


def test_the_public_names_are_these() -> None:
    assert mx.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(mx, name) is not None


@pytest.mark.parametrize("module", DEFINED)
def test_each_module_defines_these(module: str) -> None:
    loaded = importlib.import_module(f"mixjax.{module}")
    defined = [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == loaded.__name__
    ]
    assert sorted(defined) == DEFINED[module].split()
    private = [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("mixjax._")
    ]
    assert sorted(private) == PASSED_ON.get(module, [])


@pytest.mark.parametrize("module", DEFINED)
def test_everything_public_is_documented(module: str) -> None:
    loaded = importlib.import_module(f"mixjax.{module}")
    assert loaded.__doc__
    names = [*DEFINED[module].split(), *PASSED_ON.get(module, [])]
    docs = {name: getattr(loaded, name).__doc__ or "" for name in names}
    # a NamedTuple or flax module without a docstring gets its signature for one
    assert [name for name, doc in docs.items() if not doc or doc.startswith(f"{name}(")] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mx.nonsense  # noqa: B018


def test_importing_mixjax_is_light_and_models_are_loaded_when_asked_for() -> None:
    program = """
import sys
import mixjax
assert {*mixjax.__all__, "__version__"} <= {*dir(mixjax)}
assert len({*dir(mixjax)}) == len(dir(mixjax))
heavy = {"tensorflow", "tensorflow_datasets", "matplotlib", "flax", "seglearn", "torch", "sklearn"}
heavy |= {"orbax"}
loaded = heavy & set(sys.modules)
assert not loaded, loaded
mixjax.models.MLP
assert "flax" in sys.modules
mixjax.datasets.watch
assert not (heavy - {"flax"}) & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
