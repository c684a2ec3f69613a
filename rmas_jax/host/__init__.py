"""The edge to the machine: users' files, user errors, processes, preemption, atomic writes."""
