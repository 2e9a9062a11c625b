"""Checks what a schema cannot: that a rendered kustomization and the ringfence.toml inside it agree.

usage: rules.py RENDERED.yaml DEFAULTS.toml POD_ADDRESS OUT

Writes OUT/ringfence.toml, OUT/args (one argument a line), OUT/env (NAME=value a line) and OUT/probe-N (the URL at
POD_ADDRESS, and the timeout in seconds), so that the caller runs and asks what is deployed; OUT/socket where the daemon
listens on a unix socket; and OUT/client-args and OUT/client-env where there is an example client.
"""

import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

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
# What an answer has for each returned file besides its contents and its path.
COLLECTED_FILE = 160
# The most bytes of the value that a program reports.
VALUE = 2**20
# The compiled code of an interpreter, which stays in memory beside `engine.cache_budget`: Python's has 43.8 MB.
LANGUAGE = 48 * 2**20
# A request to the collector of traces or output: its records, and its bytes on their way.
EXPORT_REQUEST = 16 * 2**20
# What encoding and compressing a tenant's ended runs takes besides what waits: a line of JSON in the making, and the
# lines and the compressor of the open segment.
ARCHIVE_ENCODER = 16 * 2**20
# A call that reads or changes the archive: the lines of a segment, unpacked, twice. As many are answered at once.
ARCHIVE_CALL, ARCHIVE_CALLS = 48 * 2**20, 4
# The seconds that a daemon which ends gives its archive, and the collector, to take what is left.
ARCHIVE_GRACE, EXPORT_GRACE = 5, 2
# The path that each probe asks for.
PROBES = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
POD_MONITOR = Path(__file__).parents[1] / "prometheus/podmonitor.yaml"
README = Path(__file__).parents[1] / "README.md"

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


def archives(daemon, settings):
    """Whether there may be an archive: where the fleet's is stands in the Secret of the store."""
    return bool(settings["runs.archive"]) or takes_secrets(daemon)


def drain(pod, daemon, settings):
    longest = amount(settings["server.drain_delay"]) + amount(settings["server.drain_grace"]) + 2
    if archives(daemon, settings):
        longest += ARCHIVE_GRACE
    if settings["telemetry.otlp_endpoint"]:
        longest += EXPORT_GRACE
    grace = pod.get("terminationGracePeriodSeconds", 30)
    require(grace > longest, f"terminationGracePeriodSeconds {grace} kills a drain, which may take {longest} s")


def memory(daemon, settings):
    run = settings["policy.max_memory_pages"] * 2**16 + amount(settings["policy.max_stack_size"]) + STACK_HEADROOM
    run += 2 * amount(settings["policy.max_output"]) + LOG_FLOOR + STREAMED_FRAMES + LIVE_INPUT
    run += min(amount(settings["policy.max_output"]), VALUE)
    run += amount(settings["policy.max_collect_bytes"]) + COLLECTED_FILE * settings["policy.max_collect_files"]
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
    if archives(daemon, settings):
        worst += amount(settings["runs.archive_queue"]) + ARCHIVE_ENCODER * max(1, len(settings["tenants"]))
        worst += ARCHIVE_CALLS * ARCHIVE_CALL
    if settings["telemetry.otlp_endpoint"]:
        # Spans, and output.
        worst += 2 * (amount(settings["telemetry.otlp_queue"]) + EXPORT_REQUEST)
    # Two modules on their way into the store, one that the compile thread reads, and one being
    # checked.
    worst += 4 * amount(settings["compile.max_module"])
    worst += LANGUAGE * sum(bool(re.fullmatch(r"languages\.[^.]+\.module", key)) for key in settings)
    limit = amount(daemon["resources"]["limits"]["memory"])
    told = f"{worst / 2**20:.0f} MiB in the worst case, limit {limit / 2**20:.0f} MiB"
    # A quarter is reserved for the daemon itself.
    require(worst <= 0.75 * limit, f"memory: {told}; a quarter has to stay free")
    return told


def variables(container, address):
    """What stands in the manifest itself, with the pod's address where it says so; what a Secret holds is its maker's."""
    values = {}
    for each in container.get("env", []):
        if each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") == "status.podIP":
            values[each["name"]] = address
        elif "value" in each:
            # A variable sees those that stand before it.
            values[each["name"]] = re.sub(r"\$\((\w+)\)", lambda name: values.get(name[1], name[0]), each["value"])
    return values


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


def takes_secrets(container):
    """Whether variables of a container come from a Secret as a whole."""
    return any("secretRef" in each for each in container.get("envFrom", []))


def has_file(pod, path, what):
    """A file that a setting names is one of a Secret that is mounted."""
    require(str(Path(path).parent) in secrets(pod), f"{what}: {path} is of no Secret that is mounted")


def has_folder(pod, daemon, folder, what):
    """A folder is an emptyDir that the daemon can write to."""
    mounts = [each for each in daemon["volumeMounts"] if each["mountPath"] == folder]
    empty = {each["name"] for each in pod["volumes"] if "emptyDir" in each}
    good = mounts and mounts[0]["name"] in empty and not mounts[0].get("readOnly")
    require(good, f"{folder}, where {what}, is no emptyDir that the daemon can write to")


def socket(pod, daemon, address):
    """A unix socket is in a folder that the daemon can write to."""
    has_folder(pod, daemon, str(Path(address.removeprefix("unix:")).parent), "the socket is")


def archive(pod, daemon):
    """The variables that README.md has for the Secret of the store name a bucket, and a folder for what is on its way."""
    told = dict(re.findall(r"--from-literal=(RINGFENCE_\w+)=(\S+)", README.read_text()))
    store, kept = told.get("RINGFENCE_STORE__URL", ""), told.get("RINGFENCE_RUNS__ARCHIVE", "")
    one = store.split("/")[:3] == kept.split("/")[:3]
    require(kept.startswith("s3://") and one and store != kept, f"store and archive are no two prefixes of one bucket: {told}")
    spool = told.get("RINGFENCE_RUNS__ARCHIVE_SPOOL", "")
    has_folder(pod, daemon, str(Path(spool).parent), "runs are on their way to the archive")


def telemetry(policy, pod, settings):
    """The way out to the collector is one to its pods alone, by the port that is dialled, and there is none without one."""
    rules = [rule for rule in policy["spec"]["egress"] if not {53, 443} & {port["port"] for port in rule["ports"]}]
    endpoint = settings["telemetry.otlp_endpoint"]
    if not endpoint:
        require(not rules, f"there is no collector, and a way out to {rules}")
        return
    port = urlsplit(endpoint).port
    selected = [{"namespaceSelector", "podSelector"} == to.keys() for rule in rules for to in rule["to"]]
    ports = [each["port"] for rule in rules for each in rule["ports"]]
    if port == 443 and not rules:
        # The way out to the bucket leads there as well.
        return
    only = len(rules) == 1 and selected and all(selected) and ports == [port]
    require(only, f"the way out to the collector at {endpoint} is {rules}, not one to its pods at port {port}")
    headers = settings["telemetry.otlp_headers_file"]
    if headers:
        has_file(pod, headers, "telemetry.otlp_headers_file")


def scheme_of(settings):
    """The scheme that the admin listener speaks."""
    return "HTTPS" if settings["tls.cert"] else "HTTP"


def admin_port(daemon):
    ports = [each["containerPort"] for each in daemon.get("ports", []) if each.get("name") == "admin"]
    require(len(ports) == 1, "the daemon's container has no port named admin")
    return ports[0] if ports else None


def probes(daemon, settings, address):
    """The probes ask the admin listener for what it shows everybody, at the pod's address as a kubelet does."""
    port, scheme = admin_port(daemon), scheme_of(settings)
    # A variable holds one address, and the file a list.
    listen = settings["admin.listen"] if isinstance(settings["admin.listen"], list) else [settings["admin.listen"]]
    hosts = [host for host, _, listened in (each.rpartition(":") for each in listen) if listened == str(port)]
    require({address, "0.0.0.0", "[::]"} & set(hosts), f"the admin listener is not at port {port} of the pod: {listen}")
    certificates = settings["tls.client_ca"] and settings["tls.client_auth"] == "require"
    if not (settings["auth.tokens_file"] or settings["auth.jwt.jwks"] or certificates):
        require(hosts == [address], f"any container of the pod can run code, by loopback at the admin listener: {listen}")
    urls = []
    for kind, path in PROBES.items():
        get = daemon[kind].get("httpGet")
        # No `host`, and no header of that name: the pod's own address is the one that the listener answers to.
        wanted = {"path": path, "port": "admin", "scheme": scheme}
        require(get == wanted, f"{kind} asks {get}, not {wanted}")
        require(path.removeprefix("/") in settings["admin.open"], f"{kind}: admin.open does not have {path}")
        urls.append((f"{scheme.lower()}://{address}:{port}{path}", daemon[kind]["timeoutSeconds"]))
    return urls


def watched(policy, deployment, daemon, settings):
    """Prometheus is let in, to the admin listener alone, and its PodMonitor fits."""
    port = admin_port(daemon)
    rules = [rule for rule in policy["spec"]["ingress"] if port in [each["port"] for each in rule["ports"]]]
    selectors = [each.get("namespaceSelector", {}) for rule in rules for each in rule["from"]]
    named = all("kubernetes.io/metadata.name" in each.get("matchLabels", {}) for each in selectors)
    only = len(rules) == 1 and len(rules[0]["ports"]) == 1 and selectors and named
    require(only, f"NetworkPolicy: port {port} is not for the namespace of Prometheus alone")
    monitor = yaml.safe_load(POD_MONITOR.read_text())["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    require(monitor["selector"]["matchLabels"].items() <= labels.items(), "the PodMonitor selects other pods")
    (endpoint,) = monitor["podMetricsEndpoints"]
    asked = (endpoint["port"], endpoint["path"], endpoint["scheme"].upper())
    wanted = ("admin", "/metrics", scheme_of(settings))
    require(asked == wanted, f"the PodMonitor asks {asked}, not {wanted}")
    require("metrics" in settings["admin.open"], "the PodMonitor shows no credential, and admin.open does not have metrics")


def store(policy, daemon):
    """A fleet has one store for all, and a way out to it and to DNS; without one there is no way out at all."""
    shared = takes_secrets(daemon)
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
    env = variables(app, "")
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


def main(rendered, defaults, address, out):
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
    env = variables(daemon, address)
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
        archive(pod, daemon)
        telemetry(objects["NetworkPolicy"], pod, settings)
        watched(objects["NetworkPolicy"], deployment, daemon, settings)
    if example:
        client(objects, example, out)
    drain(pod, daemon, settings)
    told = memory(daemon, settings)
    for number, (url, timeout) in enumerate(probes(daemon, settings, address)):
        Path(out, f"probe-{number}").write_text(f"{url}\n{timeout}\n")
    for each in settings["listen"]:
        if each.startswith("unix:"):
            socket(pod, daemon, each)
            Path(out, "socket").write_text(each)

    Path(out, "ringfence.toml").write_text(toml)
    Path(out, "args").write_text("\n".join(daemon["args"]))
    Path(out, "env").write_text("".join(f"{key}={value}\n" for key, value in env.items()))
    print(f"  rules hold: {told}" if not problems else "\n".join(f"  {each}" for each in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
