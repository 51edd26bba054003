"""Every metric of a server: the one table that the collector fills and docs/metrics.md lists."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """Attributes:
    name: as queried; counters end in ``_total``, histograms add ``_bucket``, ``_sum``, ``_count``.
    kind: "counter", "gauge" or "histogram".
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def _counter(name: str, labels: str, text: str) -> Family:
    return Family(name, "counter", tuple(labels.split()), text)


def _gauge(name: str, labels: str, text: str) -> Family:
    return Family(name, "gauge", tuple(labels.split()), text)


def _histogram(name: str, labels: str, text: str) -> Family:
    return Family(name, "histogram", tuple(labels.split()), text)


FAMILIES: tuple[Family, ...] = (
    _counter("carv_requests_total", "method code tenant", "Requests that have ended."),
    _counter(
        "carv_request_failures_total", "method reason", "Requests that failed, by the catalogue."
    ),
    _histogram(
        "carv_request_duration_seconds", "method", "From arrival to the end, whatever the code."
    ),
    _gauge("carv_requests_in_flight", "method", "Requests now; of StreamGradients: open streams."),
    _counter(
        "carv_evaluations_total", "tenant teacher", "Evaluations that replies say were spent."
    ),
    _counter("carv_draws_total", "tenant teacher", "Draws that replies say were spent."),
    _counter(
        "carv_reply_device_seconds_total",
        "tenant teacher",
        "Compute seconds of replies: their shares of their forwards.",
    ),
    _gauge("carv_queue_requests", "teacher", "Requests of which something waits."),
    _gauge("carv_queue_evaluations", "teacher", "Evaluations that wait."),
    _gauge("carv_queue_requests_limit", "teacher", "Requests at which the queue is full."),
    _gauge("carv_queue_evaluations_limit", "teacher", "Evaluations at which the queue is full."),
    _gauge("carv_tenant_queue_requests", "teacher tenant", "Requests of which something waits."),
    _gauge("carv_tenant_queue_evaluations", "teacher tenant", "Evaluations that wait."),
    _histogram("carv_queue_wait_seconds", "teacher", "From submission to the first microbatch."),
    _counter("carv_jobs_total", "teacher outcome", "Jobs of the queue that have ended."),
    _counter("carv_lost_microbatches_total", "teacher", "Microbatches lost with their replica."),
    _counter("carv_retries_total", "teacher", "Parts of requests queued again after such a loss."),
    _counter("carv_microbatches_total", "teacher", "Forwards that ran."),
    _histogram("carv_microbatch_fill_ratio", "teacher", "Evaluations over the budget."),
    _counter("carv_microbatch_requests_total", "teacher", "Requests in microbatches, summed."),
    _gauge("carv_microbatch_budget_evaluations", "teacher", "Evaluations in a full microbatch."),
    _counter(
        "carv_computed_evaluations_total", "teacher", "Evaluations that the teacher computed."
    ),
    _counter("carv_device_seconds_total", "teacher", "Seconds of forwards."),
    _histogram("carv_forward_duration_seconds", "teacher", "Seconds of one forward."),
    _counter("carv_held_seconds_total", "teacher", "Idle device, waiting for expected requests."),
    _gauge("carv_evaluation_seconds", "teacher", "Seconds of one evaluation, smoothed."),
    _gauge("carv_microbatches_in_flight", "teacher", "Microbatches handed to replicas now."),
    _gauge("carv_evaluations_in_flight", "teacher", "Evaluations of those microbatches."),
    _gauge("carv_replicas", "teacher state", "Replicas by state."),
    _gauge(
        "carv_devices", "", "Devices: those of this process, and one for each replica elsewhere."
    ),
    _gauge("carv_replica_launch_seconds", "teacher", "Measured cost of a launch, mean."),
    _gauge("carv_replica_row_seconds", "teacher", "Measured cost of a row, mean."),
    _counter(
        "carv_estimates_total",
        "teacher sampler proposal coupling",
        "Estimates answered, by how their draws were made.",
    ),
    _gauge("carv_noise_variance", "teacher", "Mean noise variance of the last 256 estimates."),
    _gauge(
        "carv_effective_sample_ratio",
        "teacher",
        "Mean effective sample size over K of the last 256 estimates.",
    ),
    _gauge(
        "carv_sampling_efficiency",
        "teacher",
        "Second moment of a draw under the prior over that under the sampling in use.",
    ),
    _gauge("carv_past_draws", "teacher", "Discounted draws behind the sampling in use."),
    _gauge("carv_histories", "teacher", "Histories of past draws kept."),
    _gauge("carv_histories_limit", "teacher", "Most histories kept."),
    _gauge("carv_cache_entries", "cache", "Handles kept."),
    _gauge("carv_cache_bytes", "cache", "Bytes kept."),
    _gauge("carv_cache_entries_limit", "cache", "Most handles kept."),
    _gauge("carv_cache_bytes_limit", "cache", "Most bytes kept."),
    _counter("carv_cache_hits_total", "cache", "Look-ups that found their handle."),
    _counter("carv_cache_misses_total", "cache", "Look-ups that did not."),
    _counter("carv_cache_evictions_total", "cache cause", "Handles dropped."),
    _gauge("carv_ready", "", "1 while health says SERVING."),
    _gauge("carv_draining", "", "1 once the server drains."),
    _gauge("carv_build_info", "version python grpc torch", "1."),
    _gauge("carv_teacher_info", "teacher family digest device", "1."),
    _counter("carv_trace_spans_exported_total", "", "Spans that the collector took."),
    _counter(
        "carv_trace_spans_dropped_total", "", "Spans lost to a full buffer or a failed export."
    ),
    _counter("carv_log_lines_suppressed_total", "", "Lines of the access log over its limit."),
)
"""Beside these there are prometheus_client's own of the process, under ``carv_process_``."""
