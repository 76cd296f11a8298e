"""A one-machine Kubernetes pod API: runs each pod's command as a local process.

It answers the part of the Kubernetes API that Airflow's KubernetesPodOperator and
KubernetesJobOperator use, so that a laptop exercises the operators that production runs.

What it honours of a pod: command, arguments and their `$(VAR)` references, environment (literal,
`fieldRef`, secrets by reference), init containers, memory limits, requests for CPUs and GPUs,
`emptyDir` and `hostPath` volumes, deadlines, grace periods, termination messages. What it ignores:
node selectors, affinity, tolerations, probes, ports, security contexts, service accounts. There
is no isolation: a pod is a process of the user who started the server.
"""

__version__ = "0.1.0"
