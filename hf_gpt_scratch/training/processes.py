"""What only the main process does, and how the others learn how it went; and whether there can be others."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list


Result = TypeVar("Result")


def is_in_group(accelerator: Accelerator) -> bool:
    """Whether the process is in a process group, be it alone there (`torchrun --nproc_per_node=1`): Accelerate wraps
    the model then, in DDP for one, which copies every gradient away and back as soon as autograd calls it complete.
    """
    return accelerator.distributed_type != DistributedType.NO


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Call `action` on the main process and give its result to all; every process calls this.

    Raises:
        ValueError, OSError: on the main process, what `action` raised.
        SystemExit: on the others, with code 1 and without a word: one mistake is reported once.
    """
    result, failure = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except (ValueError, OSError) as error:
            failure = error
    result, failed = broadcast_object_list([result, failure is not None])
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(1)
    return result
