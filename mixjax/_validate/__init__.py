"""Every check of user input, and every error text.

Shapes, structures and key types are static, so they are checked while tracing. Values are
checked only where they are concrete; under `jit` the documented NaN policies apply instead.
"""

from mixjax._validate.cohorts import check_active as check_active
from mixjax._validate.cohorts import check_arrivals as check_arrivals
from mixjax._validate.cohorts import check_auxiliary as check_auxiliary
from mixjax._validate.cohorts import check_candidates as check_candidates
from mixjax._validate.cohorts import check_client_axis as check_client_axis
from mixjax._validate.cohorts import check_cohort as check_cohort
from mixjax._validate.cohorts import check_draw as check_draw
from mixjax._validate.cohorts import check_durations as check_durations
from mixjax._validate.cohorts import check_groups as check_groups
from mixjax._validate.cohorts import check_ids as check_ids
from mixjax._validate.cohorts import check_krum as check_krum
from mixjax._validate.cohorts import check_mask as check_mask
from mixjax._validate.cohorts import check_mesh as check_mesh
from mixjax._validate.cohorts import check_mixable as check_mixable
from mixjax._validate.cohorts import check_origin_rows as check_origin_rows
from mixjax._validate.cohorts import check_origins as check_origins
from mixjax._validate.cohorts import check_params as check_params
from mixjax._validate.cohorts import check_participants as check_participants
from mixjax._validate.cohorts import check_partition as check_partition
from mixjax._validate.cohorts import check_per_client as check_per_client
from mixjax._validate.cohorts import check_same_dtypes as check_same_dtypes
from mixjax._validate.cohorts import check_same_model as check_same_model
from mixjax._validate.cohorts import check_schedule as check_schedule
from mixjax._validate.cohorts import check_statistics as check_statistics
from mixjax._validate.cohorts import check_units as check_units
from mixjax._validate.cohorts import check_weights as check_weights
from mixjax._validate.cohorts import check_window as check_window
from mixjax._validate.runs import check_any_checkpoint as check_any_checkpoint
from mixjax._validate.runs import check_json as check_json
from mixjax._validate.runs import check_memory as check_memory
from mixjax._validate.runs import check_rounds_left as check_rounds_left
from mixjax._validate.runs import check_run_folder as check_run_folder
from mixjax._validate.runs import check_same_config as check_same_config
from mixjax._validate.runs import check_same_leaves as check_same_leaves
from mixjax._validate.runs import check_same_records as check_same_records
from mixjax._validate.runs import check_same_run as check_same_run
from mixjax._validate.runs import check_stack_memory as check_stack_memory
from mixjax._validate.runs import tree_bytes as tree_bytes
from mixjax._validate.values import FLOAT_MAX as FLOAT_MAX
from mixjax._validate.values import INT_MAX as INT_MAX
from mixjax._validate.values import InputError as InputError
from mixjax._validate.values import check_arrays as check_arrays
from mixjax._validate.values import check_attributes as check_attributes
from mixjax._validate.values import check_callable as check_callable
from mixjax._validate.values import check_choice as check_choice
from mixjax._validate.values import check_component as check_component
from mixjax._validate.values import check_finite as check_finite
from mixjax._validate.values import check_fraction as check_fraction
from mixjax._validate.values import check_key as check_key
from mixjax._validate.values import check_non_negative as check_non_negative
from mixjax._validate.values import check_number as check_number
from mixjax._validate.values import check_positive as check_positive
from mixjax._validate.values import check_probability as check_probability
from mixjax._validate.values import check_real as check_real
from mixjax._validate.values import check_seed as check_seed
from mixjax._validate.values import check_sequence as check_sequence
from mixjax._validate.values import check_share as check_share
from mixjax._validate.values import concrete as concrete
from mixjax._validate.values import host_array as host_array
from mixjax._validate.values import named_leaves as named_leaves
from mixjax._validate.values import path_names as path_names
from mixjax._validate.values import real as real
