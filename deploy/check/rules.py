"""Checks what a schema cannot: that a rendered kustomization and the ringfence.toml inside it agree.

usage: rules.py RENDERED.yaml DEFAULTS.toml OUT

Writes OUT/ringfence.toml, OUT/args and OUT/probe-N (one argument a line) and OUT/env (NAME=value a line), so that the
caller runs what is deployed; and OUT/client-args and OUT/client-env where there is an example client.
"""

import re
import sys
import tomllib
from pathlib import Path

import yaml

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "ms": 0.001, "s": 1, "m": 60}
# The headroom of an async stack above the guest's own stack.
STACK_HEADROOM = 2**20
# The output that a run's caller may have yet to read, however little room `runs.log_budget` has.
LOG_FLOOR = 2**17
# The frames of a stream on their way to its caller.
STREAMED_FRAMES = 3 * 2**16
# The input that calls send to a run.
LIVE_INPUT = 2**17

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
    run += 2 * amount(settings["policy.max_output"]) + LOG_FLOOR + STREAMED_FRAMES + LIVE_INPUT
    budgets = ["server.inflight_request_bytes", "server.inflight_answer_bytes", "engine.cache_budget", "runs.log_budget"]
    budgets.append("runs.history_bytes")
    if settings["store.url"] == "memory:":
        budgets.append("store.budget")
    worst = settings["admission.slots"] * run + sum(amount(settings[key]) for key in budgets)
    worst += settings["compile.concurrency"] * amount(settings["compile.memory"])
    if len(settings["tenants"]) > 1 and settings["compile.mode"] == "child":
        # A compilation that was stopped for another tenant keeps its memory.
        worst += settings["compile.max_preempted"] * amount(settings["compile.memory"])
    if amount(settings["compile.small_module"]):
        worst += amount(settings["compile.small_memory"])
    # Two modules on their way into the store, one that the compile thread reads, and one being
    # checked.
    worst += 4 * amount(settings["compile.max_module"])
    limit = amount(daemon["resources"]["limits"]["memory"])
    told = f"{worst / 2**20:.0f} MiB in the worst case, limit {limit / 2**20:.0f} MiB"
    # A quarter is reserved for the daemon itself.
    require(worst <= 0.75 * limit, f"memory: {told}; a quarter has to stay free")
    return told


def variables(container):
    """What stands in the manifest itself; what a Secret holds is its maker's."""
    return {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


def from_environment(env):
    """Settings, as the daemon reads them from its environment."""
    prefix = "RINGFENCE_"
    return {key.removeprefix(prefix).lower().replace("__", "."): value for key, value in env.items() if "__" in key}


def secrets(pod):
    """Names of the Secrets that a pod mounts, by the folder where they are."""
    volumes = {each["name"]: each["secret"] for each in pod["volumes"] if "secret" in each}
    return {
        mount["mountPath"]: volumes[mount["name"]]
        for container in pod.get("initContainers", []) + pod["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] in volumes
    }


def has_file(pod, path, what):
    """A file that a setting names is one of a Secret that is mounted."""
    require(str(Path(path).parent) in secrets(pod), f"{what}: {path} is of no Secret that is mounted")


def socket(pod, daemon, probe, settings):
    """The probes ask a unix socket that the daemon listens on, in a folder that it can write to."""
    server = probe[probe.index("--server") + 1]
    require(server.startswith("unix:/"), f"the probes ask {server}: [tls] and [auth] would be in their way")
    require(server in settings["listen"], f"the daemon does not listen on {server}, which the probes ask")
    folder = str(Path(server.removeprefix("unix:")).parent)
    mounts = [each for each in daemon["volumeMounts"] if each["mountPath"] == folder]
    empty = {each["name"] for each in pod["volumes"] if "emptyDir" in each}
    good = mounts and mounts[0]["name"] in empty and not mounts[0].get("readOnly")
    require(good, f"{folder}, where the socket is, is no emptyDir that the daemon can write to")


def store(policy, daemon):
    """A fleet has one store for all, and a way out to it and to DNS; without one there is no way out at all."""
    shared = any("secretRef" in each for each in daemon.get("envFrom", []))
    require(shared, "the fleet has no shared store: what one replica loads the others do not run")
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", [])}
    require({53, 443} <= ports or not shared, f"no way out to the store and to DNS, only to ports {ports}")
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    wide = [block["cidr"] for block in blocks if block["cidr"] == "0.0.0.0/0" and "169.254.0.0/16" not in block["except"]]
    require(not wide, "the way out leads to the provider's metadata")
    require(all("to" in rule and "ports" in rule for rule in policy["spec"]["egress"]), "a way out to anywhere")


def client(objects, deployment, out):
    """The example client is let in, shows a token, and trusts who certified the daemon."""
    template = deployment["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    (app,) = pod["containers"]
    restricted(pod, app)
    require(pod.get("automountServiceAccountToken") is False, "client: a service account token is mounted")
    policy, service = objects["NetworkPolicy"]["spec"], objects["Service"]
    wanted = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    require(wanted.items() <= labels.items(), f"client: NetworkPolicy wants the labels {wanted}")
    require(not policy["podSelector"]["matchLabels"].items() <= labels.items(), "client: it counts as one of the fleet")
    env = variables(app)
    port = service["spec"]["ports"][0]["port"]
    dialled = f"https://{service['metadata']['name']}:{port}"
    require(env.get("RINGFENCE_SERVER") == dialled, f"client: it dials {env.get('RINGFENCE_SERVER')}, not {dialled}")
    for name in ("RINGFENCE_TOKEN_FILE", "RINGFENCE_TLS_CA"):
        has_file(pod, env[name], f"client: {name}")
    ca = secrets(pod)[str(Path(env["RINGFENCE_TLS_CA"]).parent)]
    keys = [each["key"] for each in ca.get("items", [])]
    require(keys == ["ca.crt"], f"client: of the daemon's Secret it sees {keys or 'all'}, its key included")
    Path(out, "client-args").write_text("\n".join(app["args"]))
    Path(out, "client-env").write_text("".join(f"{key}={value}\n" for key, value in env.items()))


def main(rendered, defaults, out):
    every = list(yaml.safe_load_all(Path(rendered).read_text()))
    objects = {each["kind"]: each for each in every if each["kind"] != "Deployment"}
    deployments = {each["metadata"]["name"]: each for each in every if each["kind"] == "Deployment"}
    example = deployments.pop("example-client", None)
    (deployment,) = deployments.values()
    pod = deployment["spec"]["template"]["spec"]
    toml = objects["ConfigMap"]["data"]["ringfence.toml"]
    default = dict(leaves(tomllib.loads(Path(defaults).read_text())))
    try:
        own = dict(leaves(tomllib.loads(toml)))
    except tomllib.TOMLDecodeError as error:
        sys.exit(f"  ringfence.toml: {error}")
    containers = pod.get("initContainers", []) + pod["containers"]
    daemon = next(each for each in containers if each["name"] == "ringfence")
    env = variables(daemon)
    settings = default | own | from_environment(env)

    for key, value in own.items():
        require(default.get(key) != value, f"{key} restates the default")
    for container in containers:
        restricted(pod, container)
    require(pod.get("automountServiceAccountToken") is False, "a service account token is mounted")
    require(pod.get("enableServiceLinks") is False, "service links would become settings")
    require(not settings["server.insecure_listen"] or "NetworkPolicy" in objects, "open listener without NetworkPolicy")
    for key in ("tls.cert", "tls.key", "auth.tokens_file"):
        if settings[key]:
            has_file(pod, settings[key], key)
    if objects.get("NetworkPolicy"):
        store(objects["NetworkPolicy"], daemon)
    if example:
        client(objects, example, out)
    drain(pod, daemon, settings)
    told = memory(daemon, settings)
    probes = [daemon[kind]["exec"]["command"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")]
    for probe in probes:
        socket(pod, daemon, probe, settings)

    Path(out, "ringfence.toml").write_text(toml)
    Path(out, "args").write_text("\n".join(daemon["args"]))
    for number, probe in enumerate(probes):
        Path(out, f"probe-{number}").write_text("\n".join(probe))
    Path(out, "env").write_text("".join(f"{key}={value}\n" for key, value in env.items()))
    print(f"  rules hold: {told}" if not problems else "\n".join(f"  {each}" for each in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
