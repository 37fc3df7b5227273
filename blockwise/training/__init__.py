"""The parts of a training run. Each optional one is an object that does nothing where it is off: see docs/design.md."""

from blockwise.training.batches import TrainBatches, eval_batches
from blockwise.training.block_stats import BlockStats, total_norm
from blockwise.training.ema import EMA
from blockwise.training.live_curvature import LiveCurvature
from blockwise.training.machine import collecting_by_hand, for_this_machine, out_of_memory_is_a_mistake, set_up_torch
from blockwise.training.output import Output, checkpoint_of
from blockwise.training.parallel import parallelize
from blockwise.training.precision import Precision
from blockwise.training.profiler import Profiler
from blockwise.training.progress import Progress
from blockwise.training.sharding import shard_and_move
from blockwise.training.start import find_start
from blockwise.training.summary import dry_run, print_config, print_summary
from blockwise.training.throughput import Throughput
