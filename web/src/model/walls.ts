// What stands between a guest and its host, in words.

/** A part of a wall, as the daemon names it and as a sentence. */
export interface Wall {
  readonly name: string;
  /** What it does; empty where this page does not know it. */
  readonly says: string;
}

const HARDENING: Readonly<Record<string, string>> = {
  user: 'The daemon gave up root.',
  no_new_privs: 'Nothing that it starts can gain privileges.',
  capabilities: 'It gave up all capabilities.',
  landlock: 'The kernel keeps it to the files that it needs (Landlock).',
  seccomp: 'The kernel keeps it to the system calls that it needs (seccomp).',
  none: 'The daemon gave up nothing: only WebAssembly itself confines guests.',
};

const COMPILE: Readonly<Record<string, string>> = {
  child: 'Each module is compiled in a process of its own.',
  landlock: 'That process sees no files (Landlock).',
  seccomp: 'It is kept to the system calls that it needs (seccomp).',
  'in-process': 'Modules are compiled in the daemon itself: a hostile module can take memory and time from it.',
};

const POOL: Readonly<Record<string, string>> = {
  pooled: 'Memory of guests is laid out at the start, with guard regions between guests.',
  pagemap_scan: 'Memory that a guest touched is found and cleared by the kernel (PAGEMAP_SCAN).',
  'on-demand': 'Each run gets its memory when it starts.',
};

const FEATURES: Readonly<Record<string, string>> = {
  wasi_snapshot_preview1: 'Runs programs for WASI preview 1.',
  wasi_unstable: 'Runs programs for the WASI before preview 1.',
  wasi_cli_run: 'Runs components of WASI 0.2.',
  memory_limits: 'Each run has a limit of memory.',
  fuel: 'Runs can be metered by fuel.',
  compilation_cache: 'Compiled modules are kept.',
  context_cancellation: 'Runs can be ended at any time.',
  streaming: 'Output comes as it is written.',
};

/** Explains `HealthResponse.hardening`. */
export const hardeningWalls = (mode: string) => explain(mode, HARDENING);
/** Explains `HealthResponse.compile_mode`. */
export const compileWalls = (mode: string) => explain(mode, COMPILE);
/** Explains `HealthResponse.pool_mode`. */
export const poolWalls = (mode: string) => explain(mode, POOL);

/** Explains `RuntimeInfo.features`. */
export function featureWalls(features: readonly string[]): Wall[] {
  return features.map((name) => {
    const says = name.startsWith('wasm:') ? 'A proposal for WebAssembly that the operator turned on.' : FEATURES[name];
    return { name, says: says ?? '' };
  });
}

function explain(mode: string, words: Readonly<Record<string, string>>): Wall[] {
  return mode
    .split('+')
    .filter((it) => it !== '')
    .map((name) => ({ name, says: words[name] ?? '' }));
}
