"""What is run with the package: experiments, embedded agents, benchmarks, studies."""
