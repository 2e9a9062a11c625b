// Where the trace of a run is shown.

/** Returns the address of a trace by the operator's pattern; `undefined` where there is none, or no such id. */
export function traceLink(pattern: string, id: string): string | undefined {
  const isLink = /^https?:\/\//i.test(pattern) && /^[0-9a-f]{32}$/.test(id);
  return isLink ? pattern.replaceAll('{trace_id}', encodeURIComponent(id)) : undefined;
}
