"""Measure an installed crossrank: speed, ranking quality, and the machines that a load needs.

commands/       the subcommands of `crossrank`; everything below is imported by them
load/           `bench load`: load generator, its senders over HTTP and gRPC, sweeps of the rate
engines/        `bench engines`: engines called directly, in turn
plan/           `bench plan`: a capacity model fitted to measurements
tune/           `tune`: search for the fastest engine configuration
eval/           `eval`: NDCG of rankings, with significance
perf_analyzer/  `perf-analyzer`: NVIDIA's perf_analyzer against Triton
base/           what they share: requests, started servers, progress and reports
"""
