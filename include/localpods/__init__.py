"""A one-machine Kubernetes pod API: runs each pod's command as a local process.

It answers the part of the Kubernetes API that Airflow's KubernetesPodOperator and
KubernetesJobOperator use, so that a laptop exercises the operators that production runs.

    localpods serve --state DIR --images FILE     until SIGTERM; pods outlive it
    localpods stop --state DIR                    ends the server and all pods

Clients connect with `DIR/kubeconfig`. `localpods.images` describes FILE. Secrets that pods refer
to lie in `DIR/secrets.json`: `{"name": {"key": "value"}}`, readable by its owner only.

A pod's process has none of the server's variables. It gets PATH (the image's `path_prepend`, then
the system's), HOME and TMPDIR (directories of its own, deleted with the pod), LANG, HOSTNAME,
those of the image map and of its specification, and the paths that stand for those of a real pod:

    TERMINATION_MESSAGE_PATH    file for the termination message
    AIRFLOW_XCOM_PATH           file for the XCom, when the task pushes one
    LOCALPODS_VOLUME_<NAME>     directory of a mounted volume
    JOB_COMPLETION_INDEX        in pods of an Indexed Job
    CUDA_VISIBLE_DEVICES        the GPUs that it asked for, on a machine that has any

Of a pod it honours: command, arguments and their `$(VAR)` references, environment (literal,
`fieldRef`, secrets by reference), init containers, memory limits, requests for CPUs and GPUs,
`emptyDir` and `hostPath` volumes, deadlines, grace periods, termination messages. It ignores node
selectors, affinity, tolerations, probes, ports, working directories, security contexts and
service accounts. There is no isolation: a pod is a process of the user who started the server.
"""

__version__ = "0.1.0"
