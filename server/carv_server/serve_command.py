"""``carv serve``: argv and environment to a frozen configuration."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from carv import DEFAULT_MAX_MESSAGE_BYTES
from carv_server.ending import ended_by_signals, leave

if TYPE_CHECKING:
    from carv_server.replicas.ray_config import RayConfig

__all__ = ["register"]

_EXIT_USAGE = 2
_EXIT_ADDRESS = 3
_MIB = 1024 * 1024


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``carv serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="serve teachers over gRPC",
        description="Serve frozen diffusion teachers over gRPC until SIGTERM or SIGINT; in-flight "
        "requests then finish and new ones are refused.",
        epilog="Every flag can be given as an environment variable: --evaluation-budget is "
        "CARV_EVALUATION_BUDGET; CARV_TEACHER takes several registrations separated by ';'. "
        "Exit codes: 0 clean stop, 2 bad configuration, 3 the address cannot be bound.",
    )
    add = _Adder(parser, os.environ)
    add("--address", str, "127.0.0.1:50051", "host:port to listen on; port 0 takes a free one")
    parser.add_argument(
        "--teacher",
        action="append",
        metavar="ID=FOLDER[,null_class=N]",
        help="a teacher to serve, repeatable; the first is the default. FOLDER is a diffusers "
        "pipeline folder (Stable Diffusion or DDPM layout, safetensors) or holds mixture.json. "
        "Without it: the embedded teacher 'shapes'",
    )
    add("--device", str, "auto", "cpu, cuda, cuda:N or auto")
    add(
        "--dtype",
        _choice("auto", "float32", "float16", "bfloat16"),
        "auto",
        "what networks compute in; auto is what the device is good at, and its error against "
        "float32 is logged",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=_flag(os.environ.get("CARV_COMPILE")),
        help="compile networks by torch.compile, for batch sizes of powers of two; takes minutes "
        "before the server is ready (default: no)",
    )
    parser.add_argument(
        "--cuda-graphs",
        action=argparse.BooleanOptionalAction,
        default=_flag(os.environ.get("CARV_CUDA_GRAPHS")),
        help="capture forwards of those batch sizes as CUDA graphs (default: no)",
    )
    add(
        "--torch-threads",
        _auto_or(0),
        "auto",
        "CPU threads of one forward; auto leaves one core to the rest, 0 leaves it to torch",
    )
    add(
        "--evaluation-budget",
        _auto_or(1),
        "auto",
        "evaluations in one microbatch; auto measures it before the server is ready",
    )
    add(
        "--replicas",
        _choice("in-process", "ray"),
        "in-process",
        "where the teachers are: one replica of each in this process, or actors of a Ray cluster "
        "(pip install 'carv[ray]'); the flags up to --cpus-per-replica are for these",
    )
    add(
        "--ray-address",
        str,
        "",
        "host:port of a cluster that this machine is a node of, or auto; without it a cluster of "
        "the server's own, on the loopback interface",
    )
    add("--min-replicas", _at_least(1), 1, "replicas of each teacher; ready means that they are")
    add("--max-replicas", _at_least(1), None, "most replicas of each teacher, as the queue grows")
    add(
        "--gpus-per-replica",
        _gpus,
        "auto",
        "GPUs, or a fraction of one; auto is 1 where the cluster has any",
    )
    add("--cpus-per-replica", _above_zero, 1, "CPUs; threads of a forward on a CPU")
    add(
        "--max-waiting-evaluations", _at_least(1), 1 << 16, "evaluations that may wait in the queue"
    )
    add(
        "--hold-percent",
        _at_least(0),
        75,
        "longest wait of an idle device for requests that are expected, as a share of a launch",
    )
    add(
        "--max-message-mib",
        _at_least(1),
        DEFAULT_MAX_MESSAGE_BYTES // _MIB,
        "largest request or reply, MiB",
    )
    add("--max-draws", _at_least(1), 1024, "K, draws per render")
    add("--max-renders", _at_least(1), 256, "R, renders per request")
    add("--max-evaluations", _at_least(1), 16384, "evaluations per request")
    add("--max-stream-requests", _at_least(1), 64, "requests in flight on one StreamGradients")
    add("--conditioning-ttl", _at_least(1), 3600, "seconds a handle outlives its last use")
    add("--latents-ttl", _at_least(1), 600, "seconds that kept latents outlive their last use")
    add("--max-kept-latents", _at_least(1), 1024, "latents kept for each teacher")
    add(
        "--max-kept-latents-mib",
        _at_least(1),
        256,
        "bytes of latents kept for each teacher, as float32, MiB",
    )
    add(
        "--history-draws",
        _at_least(1),
        512,
        "draws after which an older draw counts 1/e in the adaptive proposal",
    )
    add("--max-histories", _at_least(1), 256, "histories of past draws kept for each teacher")
    add("--drain-seconds", _at_least(0), 30, "time for in-flight requests after SIGTERM")
    add(
        "--log-level",
        _choice("debug", "info", "warning", "error"),
        "info",
        "what the log on stderr says",
    )
    parser.set_defaults(run=_run)


class _Adder:
    """Adds flags whose defaults come from the environment."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment

    def __call__(self, flag: str, kind: Callable[[str], Any], default: object, text: str) -> None:
        variable = "CARV_" + flag.removeprefix("--").replace("-", "_").upper()
        # argparse converts a string default by `kind`, with the same errors as a flag's value.
        value = self._environment.get(variable, None if default is None else str(default))
        said = "" if default in (None, "") else f" (default: {default})"
        self._parser.add_argument(flag, type=kind, default=value, help=text + said)


@ended_by_signals()
def _run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(
        level=arguments.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # torch and diffusers take seconds to import: not before the arguments are known good.
    from carv_server.config import ServerConfig
    from carv_server.history import HistoryConfig
    from carv_server.pools import ray_pools
    from carv_server.prepare import load_teachers
    from carv_server.replicas.protocol import ReplicaStartError
    from carv_server.request import RequestLimits
    from carv_server.scheduler import SchedulerConfig
    from carv_server.serve import serve_until_signalled
    from carv_server.store import StoreConfig
    from carv_server.teachers.registry import EMBEDDED, parse_registration

    texts = arguments.teacher or list(filter(None, os.environ.get("CARV_TEACHER", "").split(";")))
    with ExitStack() as stack:
        try:
            config = ServerConfig(
                address=arguments.address,
                teachers=tuple(map(parse_registration, texts)) or (EMBEDDED,),
                device=arguments.device,
                dtype=arguments.dtype,
                compile=arguments.compile,
                cuda_graphs=arguments.cuda_graphs,
                tune=arguments.evaluation_budget is None,
                torch_threads=arguments.torch_threads,
                max_message_bytes=arguments.max_message_mib * _MIB,
                drain_seconds=arguments.drain_seconds,
                ray=_ray_config(arguments) if arguments.replicas == "ray" else None,
                scheduler=SchedulerConfig(
                    evaluation_budget=arguments.evaluation_budget
                    or SchedulerConfig.evaluation_budget,
                    max_waiting_evaluations=arguments.max_waiting_evaluations,
                    hold_fraction=arguments.hold_percent / 100,
                ),
                store=StoreConfig(seconds_to_live=arguments.conditioning_ttl),
                latents=StoreConfig(
                    max_entries=arguments.max_kept_latents,
                    max_bytes=arguments.max_kept_latents_mib * _MIB,
                    seconds_to_live=arguments.latents_ttl,
                ),
                history=HistoryConfig(
                    memory_draws=arguments.history_draws, max_histories=arguments.max_histories
                ),
                limits=RequestLimits(
                    max_draws=arguments.max_draws,
                    max_renders=arguments.max_renders,
                    max_evaluations=arguments.max_evaluations,
                    max_stream_requests=arguments.max_stream_requests,
                ),
            )
            teachers = load_teachers(config) if config.ray is None else {}
            pools = {} if config.ray is None else stack.enter_context(ray_pools(config))
        except (ValueError, RuntimeError, ReplicaStartError) as error:
            print(f"carv serve: {error}", file=sys.stderr)
            return _EXIT_USAGE
        try:
            ended = asyncio.run(serve_until_signalled(config, teachers, pools))
        except ReplicaStartError as error:
            print(f"carv serve: {error}", file=sys.stderr)
            return _EXIT_USAGE
        except RuntimeError as error:
            if "bind" not in str(error).lower():
                raise
            print(f"carv serve: cannot listen on {config.address}: {error}", file=sys.stderr)
            return _EXIT_ADDRESS
    if not ended:
        leave(0)
    return 0


def _ray_config(arguments: argparse.Namespace) -> RayConfig:
    """Raises ValueError where the bounds of scaling make no sense."""
    from carv_server.replicas.autoscale import ScalePolicy
    from carv_server.replicas.ray_config import RayConfig

    least, most = arguments.min_replicas, arguments.max_replicas or arguments.min_replicas
    return RayConfig(
        address=arguments.ray_address,
        scale=ScalePolicy(min_replicas=least, max_replicas=most),
        gpus_per_replica=arguments.gpus_per_replica,
        cpus_per_replica=arguments.cpus_per_replica,
    )


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


def _flag(text: str | None) -> bool:
    """A flag's environment variable: set and neither empty, 0, no nor false."""
    return (text or "").lower() not in ("", "0", "no", "false")


def _auto_or(minimum: int) -> Callable[[str], int | None]:
    """A number, or None for auto."""
    number = _at_least(minimum)
    return lambda text: None if text == "auto" else number(text)


def _at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
        return value

    return parse


def _above_zero(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _gpus(text: str) -> float | None:
    """None for "auto". Ray shares a GPU in fractions, and gives out several only whole."""
    if text == "auto":
        return None
    value = _number(text)
    if value < 0 or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"{text} is neither 0 to 1 nor a whole number")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value
