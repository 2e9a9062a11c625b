"""Checks what a schema cannot: that a rendered kustomization and the ringfence.toml inside it agree.

usage: rules.py RENDERED.yaml DEFAULTS.toml OUT

Writes OUT/ringfence.toml, and OUT/args and OUT/probe (one argument a line), so that the caller runs what is deployed.
"""

import re
import sys
import tomllib
from pathlib import Path

import yaml

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "ms": 0.001, "s": 1, "m": 60}
# An async stack has this much room above the guest's own.
STACK_HEADROOM = 2**20
# What a run's caller may have yet to read however little room `runs.log_budget` has.
LOG_FLOOR = 2**17
# Frames of a stream that are on their way to its caller.
STREAMED_FRAMES = 3 * 2**16

problems = []


def require(holds, problem):
    if not holds:
        problems.append(problem)


def amount(text):
    """'64MiB', '1Gi' or '25s' as a number of bytes or seconds."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()
    return int(number) * UNITS[unit]


def leaves(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def restricted(pod, container):
    """The `restricted` Pod Security Standard, and the read-only root that it does not ask for."""
    own, shared, name = container.get("securityContext", {}), pod.get("securityContext", {}), container["name"]
    both = shared | own
    require(both.get("runAsNonRoot") is True and both.get("runAsUser", 0) > 0, f"{name}: may run as root")
    require(both.get("seccompProfile", {}).get("type") == "RuntimeDefault", f"{name}: no seccomp profile")
    require(own.get("allowPrivilegeEscalation") is False, f"{name}: privilege escalation")
    require(own.get("readOnlyRootFilesystem") is True, f"{name}: writable root")
    require(own.get("capabilities") == {"drop": ["ALL"]}, f"{name}: capabilities")


def drain(pod, daemon, settings):
    longest = amount(settings["server.drain_delay"]) + amount(settings["server.drain_grace"]) + 2
    grace = pod.get("terminationGracePeriodSeconds", 30)
    require(grace > longest, f"terminationGracePeriodSeconds {grace} kills a drain, which may take {longest} s")
    live = daemon["livenessProbe"]
    patience = live["periodSeconds"] * live["failureThreshold"]
    require(patience > longest, f"livenessProbe kills after {patience} s, a drain may take {longest} s")


def memory(daemon, settings):
    run = settings["policy.max_memory_pages"] * 2**16 + amount(settings["policy.max_stack_size"]) + STACK_HEADROOM
    run += 2 * amount(settings["policy.max_output"]) + LOG_FLOOR + STREAMED_FRAMES
    budgets = ["server.inflight_request_bytes", "server.inflight_answer_bytes", "engine.cache_budget", "runs.log_budget"]
    budgets.append("runs.history_bytes")
    if settings["store.url"] == "memory:":
        budgets.append("store.budget")
    worst = settings["admission.slots"] * run + sum(amount(settings[key]) for key in budgets)
    worst += settings["compile.concurrency"] * amount(settings["compile.memory"])
    if len(settings["tenants"]) > 1 and settings["compile.mode"] == "child":
        # One that was stopped for another tenant's keeps its memory.
        worst += settings["compile.max_preempted"] * amount(settings["compile.memory"])
    if amount(settings["compile.small_module"]):
        worst += amount(settings["compile.small_memory"])
    # Two modules on their way into the store, one being read by the compile thread, one being checked.
    worst += 4 * amount(settings["compile.max_module"])
    limit = amount(daemon["resources"]["limits"]["memory"])
    told = f"{worst / 2**20:.0f} MiB in the worst case, limit {limit / 2**20:.0f} MiB"
    # A quarter is for the daemon itself.
    require(worst <= 0.75 * limit, f"memory: {told}; a quarter has to stay free")
    return told


def main(rendered, defaults, out):
    objects = {each["kind"]: each for each in yaml.safe_load_all(Path(rendered).read_text())}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    toml = objects["ConfigMap"]["data"]["ringfence.toml"]
    default = dict(leaves(tomllib.loads(Path(defaults).read_text())))
    try:
        own = dict(leaves(tomllib.loads(toml)))
    except tomllib.TOMLDecodeError as error:
        sys.exit(f"  ringfence.toml: {error}")
    settings = default | own
    containers = pod.get("initContainers", []) + pod["containers"]
    daemon = next(each for each in containers if each["name"] == "ringfence")

    for key, value in own.items():
        require(default.get(key) != value, f"{key} restates the default")
    for container in containers:
        restricted(pod, container)
    require(pod.get("automountServiceAccountToken") is False, "a service account token is mounted")
    require(pod.get("enableServiceLinks") is False, "service links would become settings")
    require(not settings["server.insecure_listen"] or "NetworkPolicy" in objects, "open listener without NetworkPolicy")
    drain(pod, daemon, settings)
    told = memory(daemon, settings)
    probes = [daemon[kind]["exec"]["command"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")]
    require(probes.count(probes[0]) == 3, "the probes ask different addresses")

    Path(out, "ringfence.toml").write_text(toml)
    Path(out, "args").write_text("\n".join(daemon["args"]))
    Path(out, "probe").write_text("\n".join(probes[0]))
    print(f"  rules hold: {told}" if not problems else "\n".join(f"  {each}" for each in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
